"""Total variation by ADMM: ``min_x |A x - y|^2 / 2 + weight TV(x)``, images in [0, 1].

TV is isotropic by default, the sum over pixels of the length of the gradient, which is 0.1 to 0.2 dB better on
Train400 than the anisotropic sum of its components' absolute values. Differences across the image's border are 0, so
``grad^T grad`` is diagonal in the 2-D DCT. Every channel has its own TV.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cs_models.numerics import relative
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.column import ColumnOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import check_measurements
from cs_models.solvers.convex import INNER_TOLERANCE, ConvexSolver, DataProximal, State, Step, solution
from cs_models.solvers.noise import image_noise
from cs_models.solvers.tikhonov import smooth_image
from cs_models.transforms.dct import DCT2d, dct, idct

# Steps of ADMM, chosen on Train400: rho = weight / JUMP, so the gradient is shrunk by JUMP grey values (1 is white) in
# an iteration, and COUPLING rho for the copy of the image. They change the speed and not the minimiser.
JUMP = 0.1
COUPLING = 3.0
OVER_RELAXATION = 1.7
# The start; more iterations gain nothing that those of ADMM do not.
SMOOTH_WEIGHT, SMOOTH_ITERATIONS = 1e-3, 10


@dataclass(kw_only=True)
class TotalVariation(ConvexSolver):
    """TV-ADMM; every step is exact, or as `DataProximal` is where an operator has no matrix.

    Column-wise operators: the image is split as ``z = grad x``, and the normal equations
    ``(M^T M + rho L) X + rho X L' = R`` are a Sylvester equation, diagonal in the eigenvectors of the left factor and
    the DCT of the rows. All others: the data term gets its own copy w of the zero-padded image; the step in x is then
    diagonal in the DCT and the step in w is `DataProximal`.

    `tolerance` bounds both the violation of the splitting and the change of z and w in an iteration, as shares.

    Attributes:
        weight: of TV; None chooses it by the noise, see `weight_for`.
        isotropic: length of the gradient, or else the sum of absolute differences.
    """

    weight: float | None = None
    isotropic: bool = True
    iterations: int = 100
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.weight is None or self.weight > 0, "weight", "more than 0")

    @torch.no_grad()
    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        check_measurements(y, operator)
        weight = self.weight_for(operator, y)
        make_step = self._sylvester_step if isinstance(operator, ColumnOperator) else self._split_step
        x, iterations, converged = self._iterate(self._start(y, operator), make_step(operator, weight, y))
        return solution(x, y, operator, iterations, converged)

    def weight_for(self, operator: MeasurementOperator, y: Tensor) -> float:
        """The weight that is used with an operator and its measurements.

        By default ``3e-4 + 0.85 sigma c``, ``sigma c`` being the `image_noise`. The residual is then 0.9 of the noise
        on y, whatever sigma and the ratio, which is where it should be (the discrepancy principle) and where PSNR was
        highest on Train400.
        """
        if self.weight is not None:
            return self.weight
        return 3e-4 + 0.85 * image_noise(operator, y)

    def objective(self, x: Tensor, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """``|A x - y|^2 / 2 + weight TV(x)`` of each image ``(N,)``, for measurements as `prepared` gives them."""
        y, operator = self.prepared(y, operator)
        steps = gradient(x)
        lengths = torch.hypot(steps[:, 0], steps[:, 1]) if self.isotropic else steps.abs().sum(1)
        data = (operator(x) - y).abs().square().flatten(1).sum(1) / 2
        return data + self.weight_for(operator, y) * lengths.flatten(1).sum(1)

    def _start(self, y: Tensor, operator: MeasurementOperator) -> State:
        """From a smooth image: ADMM fills what was not measured from its border. The multipliers start at 0."""
        start = smooth_image(y, operator, SMOOTH_WEIGHT, SMOOTH_ITERATIONS)
        z = gradient(start)
        if isinstance(operator, ColumnOperator):
            return start, z, torch.zeros_like(z), y
        w = pad_to(start, operator.padded_size)
        return start, z, torch.zeros_like(z), w, torch.zeros_like(w), torch.zeros_like(y), y

    def _sylvester_step(self, operator: MeasurementOperator, weight: float, y: Tensor) -> Step:
        assert isinstance(operator, ColumnOperator)
        rho = weight / JUMP
        height, width = operator.image_size
        matrix = operator.matrix.double()
        columns = matrix.T @ matrix + rho * _second_difference(height).to(matrix, non_blocking=True)
        values, vectors = torch.linalg.eigh(columns)
        vectors = vectors.to(operator.matrix)
        frequencies = _frequencies(width).to(values, non_blocking=True)
        spectrum = (values[:, None] + rho * frequencies).to(operator.matrix)

        def step(state: State) -> tuple[State, Tensor]:
            _, z, u, y = state
            right = operator.adjoint(y) + rho * gradient_adjoint(z - u)
            x = vectors @ idct(dct(vectors.T @ right) / spectrum)
            z, u, change = self._shrink(x, z, u)
            return (x, z, u, y), change

        return step

    def _split_step(self, operator: MeasurementOperator, weight: float, y: Tensor) -> Step:
        rho = weight / JUMP
        coupling = COUPLING * rho
        height, width = operator.image_size
        spectrum = rho * (_frequencies(height)[:, None] + _frequencies(width)) + coupling
        spectrum = spectrum.to(y.device, y.real.dtype, non_blocking=True)
        transform, proximal = DCT2d(), DataProximal(operator, coupling, min(INNER_TOLERANCE, self.tolerance))

        def step(state: State) -> tuple[State, Tensor]:
            _, z, u, w, q, k, y = state
            right = coupling * operator.crop(w - q) + rho * gradient_adjoint(z - u)
            x = transform.synthesis(transform.analysis(right) / spectrum)
            z, u, change = self._shrink(x, z, u)
            whole = pad_to(x, operator.padded_size)
            relaxed = torch.lerp(w, whole, OVER_RELAXATION) + q
            moved, k = proximal(relaxed, y, k)
            change = torch.maximum(change, torch.maximum(relative(whole - moved, moved), relative(moved - w, moved)))
            return (x, z, u, moved, relaxed - moved, k, y), change

        return step

    def _shrink(self, x: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step of z = grad x and of its multiplier u, and the relative change."""
        slope = gradient(x)
        relaxed = torch.lerp(z, slope, OVER_RELAXATION) + u
        if self.isotropic:
            length = torch.hypot(relaxed[:, :1], relaxed[:, 1:])
            moved = relaxed * (1 - JUMP / length.clamp_min(JUMP))
        else:
            moved = F.softshrink(relaxed, JUMP)
        change = torch.maximum(relative(slope - moved, slope), relative(moved - z, slope))
        return moved, relaxed - moved, change


def gradient(x: Tensor) -> Tensor:
    """Differences to the next row and to the next column, 0 at the end: ``(N, C, H, W)`` to ``(N, 2, C, H, W)``.

    It is written in place, so not for autograd.
    """
    g = x.new_zeros(len(x), 2, *x.shape[1:])
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=g[:, 0, :, :-1])
    torch.sub(x[..., 1:], x[..., :-1], out=g[:, 1, ..., :-1])
    return g


def gradient_adjoint(g: Tensor) -> Tensor:
    """The adjoint of `gradient`: ``(N, 2, C, H, W)`` to ``(N, C, H, W)``."""
    down, right = g[:, 0, :, :-1, :], g[:, 1, :, :, :-1]
    x = torch.zeros_like(g[:, 0])
    x[..., 1:, :].add_(down)
    x[..., :-1, :].sub_(down)
    x[..., 1:].add_(right)
    x[..., :-1].sub_(right)
    return x


def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images with zeros at the bottom and at the right up to (H, W)."""
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))


def _frequencies(n: int) -> Tensor:
    """Eigenvalues of ``grad^T grad`` in one dimension; the eigenvectors are the DCT's."""
    return 2 - 2 * torch.cos(torch.pi * torch.arange(n, dtype=torch.float64) / n)


def _second_difference(n: int) -> Tensor:
    """``grad^T grad`` in one dimension, ``(n, n)``."""
    difference = torch.diff(torch.eye(n, dtype=torch.float64), dim=0)
    return difference.T @ difference
