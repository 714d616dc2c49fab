"""The l1 problem that ISTA, FISTA, LASSO and OWL-QN minimise.

``F(s) = |A D s - b|^2 + sum_k C_k |s_k|``, with x = D s the image on the scale 0 .. 255, b its measurements and D an
orthonormal transform. Inside, images are in [0, 1]: F is 255^2 times the same with ``C_k / 255``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cs_models.errors import UserError
from cs_models.numerics import image_norm, relative
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import check_measurements
from cs_models.solvers.convex import ConvexSolver, constant_image, operator_norm_squared, solution
from cs_models.solvers.noise import image_noise
from cs_models.transforms.dct import BlockDCT2d, DCT2d, FlatDCT, OrthonormalTransform
from cs_models.transforms.wavelets import Wavelet2d

PEAK = 255.0
# Noise, as a standard deviation, beside which what a sparse image leaves of a photograph counts as much.
SLIGHT = 3.5 / 255


def make_transform(name: str) -> OrthonormalTransform:
    """A 2-D transform from the words of the command line.

    Args:
        name: ``dct`` of the whole image, ``dct8`` of 8x8 blocks (or another size), ``flat``, the 1-D DCT of the rows
            one after the other, or an orthogonal wavelet, such as ``db4``.

    Raises:
        UserError: for an unknown name.
    """
    if name == "dct":
        return DCT2d()
    if name == "flat":
        return FlatDCT()
    if name.startswith("dct") and name[3:].isdecimal() and int(name[3:]) > 0:
        return BlockDCT2d(int(name[3:]))
    return Wavelet2d(name)


def radial_frequency(image_size: tuple[int, int], like: Tensor) -> Tensor:
    """``sqrt((i / H)^2 + (j / W)^2)`` of the 2-D DCT's coefficient (i, j): ``(H, W)``, from 0 to nearly sqrt 2."""
    height, width = image_size
    rows = torch.arange(height, dtype=like.dtype, device=like.device) / height
    columns = torch.arange(width, dtype=like.dtype, device=like.device) / width
    return torch.hypot(rows[:, None], columns)


@dataclass(frozen=True)
class L1Problem:
    """F for one batch of measurements, with its pieces for solvers. Everything on the scale of [0, 1].

    Attributes:
        operator: A.
        transform: D.
        threshold: ``C / 255``, a number or ``(H, W)``.
        lipschitz: bound of the Lipschitz constant of the gradient of the data term, ``2 |A|^2``.
    """

    operator: MeasurementOperator
    transform: OrthonormalTransform
    threshold: float | Tensor
    lipschitz: float

    def residual(self, s: Tensor, y: Tensor) -> Tensor:
        """``A D s - y``."""
        return self.operator(self.transform.synthesis(s)) - y

    def start(self, y: Tensor) -> Tensor:
        """Coefficients of the best image of one grey value."""
        return self.transform.analysis(constant_image(y, self.operator))

    def gradient(self, residual: Tensor) -> Tensor:
        """Gradient of the data term ``2 D^T A^T r`` where the residual is r."""
        return self.transform.analysis(self.operator.adjoint(residual)).mul_(2)

    def value(self, s: Tensor, residual: Tensor) -> Tensor:
        """F of each image ``(N,)``, on the scale of [0, 1]."""
        return image_norm(residual).square() + s.abs().mul_(self.threshold).flatten(1).sum(1)

    def distance(self, step: Tensor, s: Tensor) -> Tensor:
        """How far coefficients s are from the minimum, by a proximal gradient step from there ``(N,)``.

        The step times the Lipschitz constant bounds a subgradient of F, whose product with the way to the minimum
        bounds how much F can still fall. A step is worth more, therefore, where the constant is larger than that of
        orthonormal rows, 2.
        """
        return relative(step, s) * max(1.0, self.lipschitz / 2)

    def descend(self, s: Tensor, gradient: Tensor) -> Tensor:
        """A proximal gradient step of length ``1 / lipschitz`` from s; takes over the gradient's memory."""
        return soft_threshold(gradient.div_(-self.lipschitz).add_(s), self.threshold / self.lipschitz)


def soft_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """Values moved towards 0 by the threshold, and to 0 where they are closer."""
    if isinstance(threshold, Tensor):
        return torch.clamp(values, -threshold, threshold).neg_().add_(values)
    return F.softshrink(values, threshold)


@dataclass(kw_only=True)
class L1Solver(ConvexSolver):
    """Base of the solvers of the l1 problem.

    `tolerance` bounds the step that a proximal gradient iteration would make, relative to the norm of s, see
    `L1Problem.distance`: where it is met, F is within 1 % of the minimum, whatever the matrix and its scale.

    Attributes:
        weight: C, for images on the scale 0 .. 255; None chooses it by the noise, see `weight_for`. With
            `by_frequency` it is the penalty of one cycle in two pixels: ``C_k = weight * radial_frequency_k``, and the
            mean brightness is free.
        transform: ``dct``, ``dct8`` (8x8 blocks), ``flat`` or an orthogonal wavelet, see `make_transform`.
        by_frequency: penalise high frequencies more, for ``transform=dct``.
        intercept: leave the mean brightness without a penalty, as scikit-learn's ``fit_intercept`` does; for
            ``transform=dct`` and ``flat``, where it is one coefficient.

    Raises:
        UserError: for settings outside their range.
    """

    weight: float | None = None
    transform: str = "dct"
    by_frequency: bool = False
    intercept: bool = False

    exact_weight: ClassVar[float] = 5.0
    noisy_weight: ClassVar[float] = 4.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.weight is None or self.weight > 0, "weight", "more than 0")
        make_transform(self.transform)
        if self.by_frequency and self.transform != "dct":
            raise UserError(f"by_frequency needs transform=dct, the transform is {self.transform}")
        if self.intercept and self.transform not in ("dct", "flat"):
            raise UserError(f"intercept needs transform=dct or flat, the transform is {self.transform}")

    def settings(self) -> dict[str, Any]:
        # Left out where it changes nothing: results of versions without it keep their keys.
        settings = super().settings()
        return settings if self.intercept else {key: value for key, value in settings.items() if key != "intercept"}

    def problem(self, y: Tensor, operator: MeasurementOperator) -> L1Problem:
        """The problem that `solve` minimises, for measurements on the device of y."""
        check_measurements(y, operator)
        weight = self.weight_for(operator, y) / PEAK
        threshold: float | Tensor = weight
        if self.by_frequency:
            threshold = weight * radial_frequency(operator.image_size, y.real)
        elif self.intercept:
            threshold = y.real.new_full(operator.image_size, weight)
            threshold[:1, :1].fill_(0)
        transform = make_transform(self.transform)
        height, width = operator.image_size
        if isinstance(transform, BlockDCT2d) and (height % transform.block_size or width % transform.block_size):
            raise UserError(
                f"transform={self.transform} needs sides that are multiples of {transform.block_size}, "
                f"got {height}x{width}; use transform=dct or crop the image"
            )
        return L1Problem(operator, transform, threshold, 2 * operator_norm_squared(operator))

    def weight_for(self, operator: MeasurementOperator, y: Tensor) -> float:
        """C for an operator and its measurements.

        By default `exact_weight`, the paper's, or `noisy_weight` times the `image_noise` on the scale 0 .. 255 where
        that is more; noise of less than a few times `SLIGHT` asks for less. The residual is then 0.8 to 1.1 of the
        noise (the discrepancy principle), and up to 8 dB are gained on Train400.
        """
        if self.weight is not None:
            return self.weight
        sigma = operator.noise_sigma
        noisy_weight = self.noisy_weight * sigma / (sigma + SLIGHT)
        return max(self.exact_weight, noisy_weight * PEAK * image_noise(operator, y))

    def objective(self, x: Tensor, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """F of each image ``(N,)``, on the scale 0 .. 255, for measurements as `prepared` gives them.

        Args:
            x: images ``(N, C, H, W)`` in [0, 1].
            y: measurements, as ``operator(x)`` gives them.
            operator: A.
        """
        y, operator = self.prepared(y, operator)
        problem = self.problem(y, operator)
        return PEAK**2 * problem.value(problem.transform.analysis(x), operator(x) - y)

    @torch.no_grad()
    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = self.problem(y, operator)
        coefficients, iterations, converged = self._minimise(problem, y)
        return solution(problem.transform.synthesis(coefficients), y, operator, iterations, converged)

    @abstractmethod
    def _minimise(self, problem: L1Problem, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients ``(N, C, H, W)``, iterations ``(N,)``, converged ``(N,)``."""
