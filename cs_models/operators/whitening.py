"""Measurements as methods expect them: of a matrix whose rows are orthonormal, or scaled as a paper scales them.

What a matrix measures is what its rows span. Methods, though, are made for one scale and for rows of one length that
are orthogonal to each other: the step sizes of networks, the weights and thresholds of solvers, and their stopping
rules. With ``A = L Q``, Q having orthonormal rows, ``(L^-1 y, Q)`` is the same problem in that form.

White noise of standard deviation sigma on y is no longer white on ``L^-1 y``: where the singular value of A is s, it is
``sigma / s``. Methods that take one noise level are given the root mean square. Directions in which the noise is more
than half the range of an image tell nothing and are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cs_models.numerics import for_good
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.operators.column import ColumnOperator
from cs_models.operators.scaled import at_unit_norm

# Standard deviation of the noise from which on a direction is left out, for images in [0, 1].
TOO_NOISY = 0.5
# How near to 1 the columns' norm is taken for 1.
UNIT = 1e-5
# By how much the share of a constant image that rows see must exceed M/N to count as no accident of random rows.
BRIGHT = 0.4


@dataclass(frozen=True)
class Whitening:
    """An operator with orthonormal rows, and how the measurements of another become its own.

    Attributes:
        operator: Q; its `noise_sigma` is the root mean square of `noise`.
        inverse: ``L^+``, transposed: ``(M, K)`` in float64.
        noise: standard deviation of the noise on each of a signal's measurements ``(K,)``, in float64.
    """

    operator: MatrixOperator
    inverse: Tensor
    noise: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """``L^+ y``: measurements ``(N, C, L, M)`` to ``(N, C, L, K)``."""
        return (y.double() @ self.inverse).to(y.dtype)


def whitening(operator: MatrixOperator, most_noise: float = TOO_NOISY) -> Whitening:
    """The same problem with orthonormal rows, for any matrix; it is kept with the operator.

    Args:
        operator: its rows may depend on each other.
        most_noise: standard deviation of the noise from which on a direction is left out.

    Raises:
        UserError: if the matrix holds only zeros.
    """
    key = "whitening", operator.noise_sigma, most_noise
    if key not in operator.derived or operator.derived[key][0] is not operator.matrix:
        with for_good():
            operator.derived[key] = operator.matrix, _whitening(operator, most_noise)
    known: Whitening = operator.derived[key][1]
    return known


def _whitening(operator: MatrixOperator, most_noise: float) -> Whitening:
    factors = operator.rows.factors(operator.matrix)
    noise = operator.noise_sigma / factors.values
    count = max(1, int((noise <= most_noise).sum()))  # singular values fall, so the noise grows
    noise = noise[:count]
    rows, n = operator.matrix.shape
    basis = factors.basis[:count].to(operator.matrix)
    other = operator.with_matrix(
        basis, operator.ratio if count == rows else count / n, float(noise.square().mean().sqrt())
    )
    device = operator.matrix.device
    return Whitening(other, factors.inverse[:, :count].to(device), noise.to(device))


def with_orthonormal_rows(y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
    """Measurements and operator with orthonormal rows, without a matrix at norm 1; themselves where they are so."""
    if not isinstance(operator, MatrixOperator):
        return at_unit_norm(y, operator)
    if operator.orthonormal:
        return y, operator
    same = whitening(operator)
    return same(y), same.operator


def as_trained(y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
    """As `with_orthonormal_rows`, with the mean brightness measured no better than by random rows.

    Networks learn from random rows, which see a share M/N of a constant image. Rows of zeros and ones, Hadamard's or
    the DCT's see all of it, and photographs are constant images above all: ISTA-Net++ then swings between white and
    black. Measurements along that direction are scaled down to the share that networks know, which loses nothing.
    """
    y, operator = with_orthonormal_rows(y, operator)
    if not isinstance(operator, MatrixOperator):
        return y, operator
    key = "as trained"
    if key not in operator.derived or operator.derived[key][0] is not operator.matrix:
        with for_good():
            operator.derived[key] = operator.matrix, _dimmed(operator)
    dimmed = operator.derived[key][1]
    if dimmed is None:
        return y, operator
    return (y.double() @ dimmed[0]).to(y.dtype), dimmed[1]  # in float64, which autocast leaves alone


def _dimmed(operator: MatrixOperator) -> tuple[Tensor, MatrixOperator] | None:
    """What to multiply measurements with, and its operator; None where brightness is measured as by random rows."""
    rows, n = operator.matrix.shape
    seen = operator.matrix.double().sum(1) / math.sqrt(n)
    share = float(seen.square().sum())
    if share <= rows / n + BRIGHT:
        return None
    change = (1 - math.sqrt(rows / n / share)) / share * torch.outer(seen, seen)
    scaling = torch.eye(rows, dtype=torch.float64, device=seen.device) - change
    matrix = (scaling @ operator.matrix.double()).to(operator.matrix)
    return scaling, operator.with_matrix(matrix, operator.ratio, operator.noise_sigma)


def as_published(y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
    """As `with_orthonormal_rows`, but column sampling with columns of one norm keeps them, scaled to 1.

    So has the CLOMP paper its matrices, and solvers of columns are made for them.
    """
    if not isinstance(operator, ColumnOperator):
        return with_orthonormal_rows(y, operator)
    norm = operator.column_norm
    if norm is None:
        return with_orthonormal_rows(y, operator)
    if abs(norm - 1) <= UNIT:
        return y, operator
    return y / norm, operator.with_matrix(operator.matrix / norm, operator.ratio, operator.noise_sigma / norm)
