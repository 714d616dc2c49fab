"""Estimates that are linear in the measurements: the yardsticks that every other method must beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.moments import second_moment
from cs_models.numerics import conjugate_gradients, for_good
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.operators.block import BlockOperator
from cs_models.operators.column import ColumnOperator
from cs_models.operators.rows import NOTHING_MEASURED
from cs_models.operators.scaled import at_unit_norm
from cs_models.operators.whitening import whitening
from cs_models.reconstruction import Reconstructor, Solution
from cs_models.solvers.convex import has_orthonormal_rows
from datamodules.catalog import load_set

# Conjugate gradients for a Markov field: the power of its frequencies spans six orders of magnitude, so the
# estimate needs hundreds of iterations (256x256, half of the pixels: 10 dB after 100, 24 after 400, 26.4 after
# 600 and in the limit). The small diagonal term is for rows that depend on each other.
MARKOV_ITERATIONS = 2000
MARKOV_TOLERANCE = 1e-3
REGULARISATION = 1e-6


@dataclass(frozen=True)
class BackProjection(Reconstructor):
    """``x = A^T y``."""

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        return Solution(operator.adjoint(y))

    def settings(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class PseudoInverse(Reconstructor):
    """``x = A^+ y``, the image of smallest norm that explains the measurements."""

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        return Solution(operator.pinv(y))

    def settings(self) -> dict[str, Any]:
        return {}


class LinearEstimate(Reconstructor):
    """The linear estimate of least mean squared error, ``Q y`` with ``Q = C A^T (A C A^T + sigma^2 I)^-1``.

    sigma is the standard deviation of the noise that the operator knows of.

    Of blocks, C is the second moment of the blocks of training photographs; with blocks X and Y = Phi X, Q is the
    ``X Y^T (Y Y^T)^-1`` that ISTA-Net starts from. Operators that see the whole image get the covariance of a
    stationary separable Markov field, whose mean, variance and correlation of neighbours are those of the same
    photographs, by conjugate gradients, with orthonormal rows and their coloured noise in the place of a matrix that
    is not. With rows far from orthonormal and no matrix (tomography) these end before the estimate is reached.
    """

    def __init__(self, training_set: str = "bundled-train") -> None:
        """
        Args:
            training_set: the set whose blocks give C.
        """
        self.training_set = training_set
        # A benchmark asks for the same matrix image after image.
        self._latest: tuple[Tensor, float, Tensor] | None = None

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        if isinstance(operator, ColumnOperator):
            raise UserError("method 'linear' estimates images, not columns; measure with --operator block")
        if not isinstance(operator, BlockOperator):
            return Solution(self._markov_estimate(y, operator))
        return Solution(operator.image(y @ self.estimator(operator).to(y).T))

    def _markov_estimate(self, y: Tensor, operator: MeasurementOperator) -> Tensor:
        y, operator = at_unit_norm(y, operator)
        variance: float | Tensor = operator.noise_sigma**2
        if isinstance(operator, MatrixOperator) and not operator.orthonormal:
            # However noisy a direction is, the estimate knows what it is worth.
            same = whitening(operator, most_noise=math.inf)
            y, operator, variance = same(y), same.operator, same.noise.square().to(y)
        field = markov_field(self.training_set)
        height, width = operator.image_size
        spectrum = field.variance * torch.outer(field.spectrum(height), field.spectrum(width)[: width // 2 + 1])
        spectrum = spectrum.to(y.real, non_blocking=True)

        def filtered(k: Tensor, power: Tensor) -> Tensor:
            return torch.fft.irfft2(torch.fft.rfft2(operator.adjoint(k)) * power, s=(height, width))

        def gram(k: Tensor) -> Tensor:
            return operator(filtered(k, spectrum)) + (variance + REGULARISATION) * k

        def precondition(k: Tensor) -> Tensor:
            return operator(filtered(k, 1 / (spectrum + operator.noise_sigma**2)))

        mean = torch.full((1, 1, height, width), field.mean, dtype=y.real.dtype, device=y.device)
        right = y - operator(mean)
        orthonormal = has_orthonormal_rows(operator)
        if orthonormal:
            # Of noise on a Fourier coefficient and on its conjugate, which is measured too, a part explains no image.
            # The preconditioner does not see it, so that the iterations would never be done with it.
            right = operator(operator.adjoint(right))
        weights = conjugate_gradients(
            gram,
            right,
            iterations=MARKOV_ITERATIONS,
            precondition=precondition if orthonormal else None,
            tolerance=MARKOV_TOLERANCE,
        )
        return mean + filtered(weights, spectrum)

    def estimator(self, operator: BlockOperator) -> Tensor:
        """Q of an operator's matrix, ``(B^2, M)`` in float64."""
        known = self._latest
        if known is None or known[0] is not operator.matrix or known[1] != operator.noise_sigma:
            moment = second_moment((self.training_set,), operator.block_size)
            with for_good():
                estimator = linear_estimator(operator.matrix, moment, operator.noise_sigma)
            self._latest = known = (operator.matrix, operator.noise_sigma, estimator)
        return known[2]

    def settings(self) -> dict[str, Any]:
        return {"training_set": self.training_set}


@dataclass(frozen=True)
class MarkovField:
    """First-order Markov field, separable and stationary: the covariance of pixels is ``variance rho^(|dx| + |dy|)``.

    Attributes:
        mean: of a pixel in [0, 1].
        variance: of a pixel.
        rho: correlation of neighbours.
    """

    mean: float
    variance: float
    rho: float

    def spectrum(self, size: int) -> Tensor:
        """Power spectrum of one direction at the frequencies of a DFT ``(size,)``, in float64, with mean 1."""
        phase = 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
        power = 1 / (1 - 2 * self.rho * torch.cos(phase) + self.rho**2)
        return power / power.mean()


@lru_cache(maxsize=4)
def markov_field(training_set: str) -> MarkovField:
    """The field with the mean, the variance and the correlation of neighbours of an image set's luminance.

    Raises:
        UserError: if the set is unknown.
    """
    moments = torch.zeros(4, dtype=torch.float64)
    for _, image in load_set(training_set):
        plane = image[0].double()
        neighbours = (plane[1:] * plane[:-1]).mean() + (plane[:, 1:] * plane[:, :-1]).mean()
        moments += torch.stack([plane.mean(), plane.square().mean(), neighbours / 2, torch.ones_like(neighbours)])
    mean, square, product = (moments[:3] / moments[3]).tolist()
    variance = square - mean**2
    return MarkovField(mean, variance, (product - mean**2) / variance)


def linear_estimator(matrix: Tensor, moment: Tensor, noise_sigma: float = 0.0) -> Tensor:
    """``Q = C Phi^T (Phi C Phi^T + sigma^2 I)^-1``.

    Args:
        matrix: Phi ``(M, n)``.
        moment: C ``(n, n)``, symmetric and positive semidefinite.
        noise_sigma: sigma, of the white noise on the measurements.

    Returns:
        ``(n, M)`` in float64, on the device of the matrix.

    Raises:
        UserError: if the matrix holds only zeros.
    """
    phi = matrix.double()
    covariance = moment.to(phi)
    cross = covariance @ phi.T
    gram = phi @ cross
    mean = gram.diagonal().mean()
    if mean == 0:
        raise UserError(NOTHING_MEASURED)
    # A share of the mean variance far below the noise of 8-bit pixels keeps a rank-deficient C invertible.
    gram.diagonal().add_(1e-8 * mean + noise_sigma**2)
    return torch.cholesky_solve(cross.T, torch.linalg.cholesky(gram)).T
