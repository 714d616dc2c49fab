"""What the rows of a matrix span: the numerical rank, and an orthonormal basis with the way to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.numerics import for_good

# Numbers rounded to float32 leave singular values of at most 4e-8 of the largest where they should be 0: the roundings
# are a random matrix of 3e-8 times the entries, and the norm of a random matrix is the least that entries can have.
FLOAT32_RANK = 2**-22
NOTHING_MEASURED = "the matrix holds only zeros, so it measures nothing; give one with entries"


def rank_tolerance(matrix: Tensor) -> float:
    """The share of the largest singular value below which one is a rounding error.

    What counts is the precision that the numbers were written in, not that of the tensor that holds them now.
    """
    if matrix.dtype != torch.float64 or torch.equal(matrix.float().double(), matrix):
        return FLOAT32_RANK
    return max(matrix.shape) * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Factors:
    """``A = L Q``: Q has orthonormal rows, which span what the rows of A span, and ``L = U S``.

    Attributes:
        inverse: ``L^+ = S^-1 U^T``, transposed: ``(M, K)`` in float64, K being the rank of A.
        basis: Q ``(K, n)`` in float64, the directions that are measured best first.
        values: the singular values S ``(K,)``.
    """

    inverse: Tensor
    basis: Tensor
    values: Tensor


class RowSpace:
    """What was computed of a matrix, kept for all operators that share it; they hand the matrix over."""

    def __init__(self) -> None:
        self._orthonormal: bool | None = None
        self._factors: Factors | None = None

    def orthonormal(self, matrix: Tensor) -> bool:
        """Whether the rows of ``(M, n)`` are orthonormal, to the rounding of float32."""
        if self._orthonormal is None:
            rows = matrix.double()
            identity = torch.eye(rows.shape[0], dtype=torch.float64, device=rows.device)
            self._orthonormal = bool(torch.allclose(rows @ rows.T, identity, atol=1e-5, rtol=0))
        return self._orthonormal

    def factors(self, matrix: Tensor) -> Factors:
        """L and Q of ``(M, n)``, by singular values; rows that depend on others are merged.

        Raises:
            UserError: for a matrix of zeros.
        """
        if self._factors is None:
            with for_good():
                u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
                kept = s > rank_tolerance(matrix) * s[0]
                if not kept.any():
                    raise UserError(NOTHING_MEASURED)
                self._factors = Factors(u[:, kept] / s[kept], vt[kept], s[kept])
        return self._factors
