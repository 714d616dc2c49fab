"""Between this framework and deepinv (https://deepinv.github.io), an optional dependency.

Its physics become operators and ours become physics; its reconstruction networks and solvers become reconstructors and
ours become modules that it can call. Denoisers need no bridge: both sides call them as ``denoiser(x, sigma)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cs_models.errors import UserError, first_line
from cs_models.numerics import image_norm, per_image
from cs_models.operators import MeasurementOperator
from cs_models.operators.matrices import module_sha256
from cs_models.reconstruction import Reconstructor, Solution

try:
    from deepinv.physics import GaussianNoise, LinearPhysics, ZeroNoise
except ImportError as error:
    raise UserError("the bridge needs deepinv: pip install 'cs-models[deepinv]'") from error


class OperatorPhysics(LinearPhysics):
    """One of our operators as deepinv's linear physics; measurements keep their shape and noise their level."""

    def __init__(self, operator: MeasurementOperator, channels: int = 1) -> None:
        """
        Args:
            operator: A.
            channels: of the images, each of which is measured by itself.
        """
        noise = GaussianNoise(operator.noise_sigma) if operator.noise_sigma else ZeroNoise()
        super().__init__(img_size=(channels, *operator.image_size), noise_model=noise)
        self.operator = operator

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``A x``."""
        return self.operator(x)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """``A^T y``."""
        return self.operator.adjoint(y)

    def A_adjoint_A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``A^T A x``."""
        return self.operator.normal(x)

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        """``A^+ y``."""
        return self.operator.pinv(y)


class PhysicsOperator(MeasurementOperator):
    """A linear physics of deepinv, made for images of one channel, as an operator.

    The pseudo-inverse is computed by conjugate gradients: what deepinv offers is often an approximation, such as
    filtered back-projection.

    Attributes:
        physics: whose `A` and `A_adjoint` are used.
        iterations: at most, of conjugate gradients.
        tolerance: on the gradient of the squared residual, as a share of the first one.
    """

    def __init__(
        self,
        physics: LinearPhysics,
        image_size: tuple[int, int],
        noise_sigma: float = 0.0,
        iterations: int = 500,
        tolerance: float = 1e-12,
    ) -> None:
        """
        Args:
            physics: a linear physics for images ``(N, 1, H, W)`` in [0, 1].
            image_size: (H, W).
            noise_sigma: see `MeasurementOperator`; deepinv's own noise model is not used.
            iterations: see above.
            tolerance: see above.

        Raises:
            UserError: if the physics is not linear or does not take such images.
        """
        name = type(physics).__name__
        if not isinstance(physics, LinearPhysics):
            raise UserError(f"{name} is no linear physics of deepinv, and operators are linear")
        like = next((buffer for buffer in physics.buffers() if buffer.is_floating_point()), torch.zeros(()))
        try:
            count = physics.A(like.new_zeros(1, 1, *image_size)).numel()
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = first_line(error)
            size = f"{image_size[0]}x{image_size[1]}"
            raise UserError(f"{name} takes no images of {size}, one channel: {reason}") from error
        super().__init__(image_size, count / (image_size[0] * image_size[1]), noise_sigma)
        self.physics = physics
        self.iterations, self.tolerance = iterations, tolerance

    def resized(self, height: int, width: int) -> MeasurementOperator:
        if (height, width) != self.image_size:
            size = f"{self.image_size[0]}x{self.image_size[1]}"
            raise UserError(f"this deepinv physics is for {size} images, not {height}x{width}")
        return self

    @property
    def spec(self) -> dict[str, Any]:
        name, digest = type(self.physics).__name__, module_sha256(self.physics)
        return {"kind": "deepinv", "physics": name, "ratio": self.ratio, "sha256": digest}

    def forward(self, x: Tensor) -> Tensor:
        return self.physics.A(x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])

    def adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y.flatten(0, 1)).unflatten(0, y.shape[:2])[:, :, 0]

    @torch.no_grad()
    def pinv(self, y: Tensor) -> Tensor:
        # Conjugate gradients on the normal equations; from zero they stay in the range of A^T.
        residual = y
        gradient = direction = self.adjoint(y)
        x = torch.zeros_like(gradient)
        energy = first = image_norm(gradient).square()
        tiny = torch.finfo(first.dtype).tiny
        for _ in range(self.iterations):
            if bool((energy <= self.tolerance**2 * first).all()):
                break
            measured = self(direction)
            step = per_image(energy / image_norm(measured).square().clamp_min(tiny), x)
            x, residual = x + step * direction, residual - per_image(step.flatten(), measured) * measured
            gradient = self.adjoint(residual)
            following = image_norm(gradient).square()
            direction = gradient + per_image(following / energy.clamp_min(tiny), x) * direction
            energy = following
        return x


class DeepinvReconstructor(Reconstructor):
    """A model of deepinv, called as ``model(y, physics)``, in our benchmark."""

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: a reconstruction network or solver of deepinv.
        """
        self.model = model.eval()

    @torch.no_grad()
    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        return Solution(self.model.to(y.device)(y, OperatorPhysics(operator, y.shape[1])))

    def settings(self) -> dict[str, Any]:
        return {"deepinv": type(self.model).__name__, "weights": module_sha256(self.model), "model": str(self.model)}


class ReconstructorModel(nn.Module):
    """One of our reconstructors as a model of deepinv, called as ``model(y, physics)``."""

    def __init__(self, reconstructor: Reconstructor) -> None:
        """
        Args:
            reconstructor: any method of ours.
        """
        super().__init__()
        self.reconstructor = reconstructor

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        """Images ``(N, C, H, W)`` from measurements of an `OperatorPhysics`, or of a physics for one channel.

        Raises:
            UserError: if the physics is for several channels, or the method cannot work with it.
        """
        if isinstance(physics, OperatorPhysics):
            return self.reconstructor.reconstruct(y, physics.operator)
        _, channels, height, width = physics.A_adjoint(y).shape
        if channels != 1:
            raise UserError(f"{type(physics).__name__} measures images of {channels} channels together; expected one")
        return self.reconstructor.reconstruct(y[:, None], PhysicsOperator(physics, (height, width)))
