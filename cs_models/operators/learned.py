"""Sampling that training changes: the matrix of a block operator as a function of parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cs_models.operators.block import BlockOperator
from cs_models.operators.carried import carried_source
from cs_models.operators.components import principal_rows
from cs_models.operators.matrices import (
    check_matrix_memory,
    gaussian_matrix,
    orthonormal_rows,
    rows_for_ratio,
    shapes_only,
)
from cs_models.operators.remembered import Remembered
from cs_models.precision import no_tf32
from cs_models.transforms.dct import dct_matrix

Start = Literal["gaussian", "signs", "dct"]
# Of the weights that `NestedRows` makes orthonormal. The shorter they are, the further a step of training turns them:
# rows that turn by some hundredths in a step learn, and rows that turn by thousandths stay where they start.
ROW_LENGTH = 0.15


class LearnedBlocks(nn.Module, ABC):
    """Trainable sampling of B x B blocks.

    It is not an operator but makes them: `operator` gives the current sampling as a `BlockOperator` of its own,
    which obeys the operators' laws and keeps doing so while training moves on, and through which gradients flow back.

    Attributes:
        ratio: nominal CS ratio.
        block_size: B.
    """

    def __init__(self, ratio: float, block_size: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.block_size = block_size
        self._fixed: Remembered[tuple[Tensor, dict[str, Any]]] = Remembered()

    @abstractmethod
    def matrix(self) -> Tensor:
        """Phi ``(M, B^2)``, differentiable in the parameters."""

    def operator(
        self, image_size: tuple[int, int], noise_sigma: float = 0.0, source: dict[str, Any] | None = None
    ) -> BlockOperator:
        """The current sampling for images ``(H, W)``; see `BlockOperator` for the other arguments."""
        # A copy, since the optimiser changes parameters in their place.
        return BlockOperator(self.matrix().clone(), image_size, self.ratio, noise_sigma, source)

    @torch.no_grad()
    def fixed(self) -> tuple[Tensor, dict[str, Any]]:
        """A copy of the matrix, the same one until training moves on, and its source for an operator's `spec`."""
        return self._fixed(tuple(self.parameters()), self._copied)

    def _copied(self) -> tuple[Tensor, dict[str, Any]]:
        matrix = self.matrix().detach().clone()  # the optimiser changes parameters in their place
        return matrix, carried_source(matrix)

    def constrain(self) -> None:
        """Project the parameters to where they must lie, for after an optimiser step; by default anywhere."""


class DenseBlocks(LearnedBlocks):
    """Every entry of the matrix is a parameter, or the sign of one.

    Binary matrices have entries ``+-1 / B``, the signs of real weights. The gradient passes the sign as if it were not
    there (straight-through: Courbariaux et al., "Binarized Neural Networks", 2016), and the weights are kept within
    ``+-1 / B``, so that none runs off to where it could never turn.

    Attributes:
        weight: ``(M, B^2)``.
        binary: whether only the signs of the weights sample.
    """

    def __init__(
        self, ratio: float, block_size: int, start: Start = "gaussian", binary: bool = False, seed: int = 0
    ) -> None:
        """
        Args:
            ratio: CS ratio in (0, 1]; ``M = floor(ratio B^2 + 1/2)``.
            block_size: B.
            start: "gaussian" with orthonormal rows; "signs", random ones of ``1 / B``; "dct", the two-dimensional
                cosines of lowest frequency.
            binary: see above.
            seed: of the random starts.
        """
        super().__init__(ratio, block_size)
        self.binary = binary
        rows = rows_for_ratio(ratio, block_size**2)
        self.weight = nn.Parameter(_start(start, rows, block_size, seed).float())
        self.constrain()

    def matrix(self) -> Tensor:
        if not self.binary:
            return self.weight
        return _signs(self.weight) / self.block_size + (self.weight - self.weight.detach())

    @torch.no_grad()
    def constrain(self) -> None:
        if self.binary:
            self.weight.clamp_(-1 / self.block_size, 1 / self.block_size)


class ScaledSigns(LearnedBlocks):
    """A binary matrix with one learned scale: its entries are the signs of real weights times that.

    The gradient passes the signs as if they were not there, and nothing keeps the weights near them (Zhang, Zhao, Gao,
    "Optimization-Inspired Compact Deep Compressive Sensing", 2020).

    Attributes:
        weight: ``(M, B^2)``.
        scale: of all entries.
    """

    def __init__(
        self, ratio: float, block_size: int, rows: int | None = None, scale: float = 0.01, seed: int = 0
    ) -> None:
        """
        Args:
            ratio: CS ratio in (0, 1].
            block_size: B.
            rows: M, where it is not ``floor(ratio B^2 + 1/2)``.
            scale: that training starts from.
            seed: of the weights, which start as Gaussian rows.
        """
        super().__init__(ratio, block_size)
        rows = rows or rows_for_ratio(ratio, block_size**2)
        self.weight = nn.Parameter(_start("gaussian", rows, block_size, seed).float())
        self.scale = nn.Parameter(torch.tensor(scale))

    def matrix(self) -> Tensor:
        return self.scale * (_signs(self.weight) + (self.weight - self.weight.detach()))


class NestedRows(LearnedBlocks):
    """Orthonormal rows for every ratio at once: those of a smaller ratio are the first rows of a larger one.

    They are what Gram and Schmidt make of a weight W, row by row from the first: with ``W W^T = L L^T`` and L lower
    triangular, ``A = L^-1 W``. Its first rows depend on the first rows of W alone, and every step of a training has
    orthonormal ones. The start are the principal components of photographs.

    Attributes:
        ratio: the largest one.
        weight: W ``(M, B^2)``, with rows of length `ROW_LENGTH`.
    """

    def __init__(self, ratio: float, block_size: int) -> None:
        """
        Args:
            ratio: the largest CS ratio, in (0, 1].
            block_size: B; see `principal_rows`.

        Raises:
            UserError: if the package has no principal components for this block size.
        """
        super().__init__(ratio, block_size)
        rows = rows_for_ratio(ratio, block_size**2)
        start = torch.empty(rows, block_size**2) if shapes_only() else principal_rows(rows, block_size)
        self.weight = nn.Parameter(ROW_LENGTH * start)

    def matrix(self) -> Tensor:
        return gram_schmidt(self.weight)

    def at(self, ratio: float, image_size: tuple[int, int], noise_sigma: float = 0.0) -> BlockOperator:
        """The current sampling at a ratio up to the largest one, differentiable in the parameters."""
        matrix = gram_schmidt(self.weight[: rows_for_ratio(ratio, self.block_size**2)])
        return BlockOperator(matrix, image_size, ratio, noise_sigma)

    @torch.no_grad()
    def constrain(self) -> None:
        """Orthonormal rows again, which `matrix` would give as well, so that W stays well conditioned."""
        self.weight.copy_(ROW_LENGTH * self.matrix())


def gram_schmidt(rows: Tensor) -> Tensor:
    """Rows ``(M, n)``, orthonormalised one after the other, differentiably, without a wait for the device."""
    with torch.autocast(rows.device.type, enabled=False), no_tf32():
        factor: Tensor = torch.linalg.cholesky_ex(rows @ rows.T)[0]
        orthonormal: Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
    return orthonormal


def _signs(weight: Tensor) -> Tensor:
    """1 where a weight is at least 0, else -1, without a gradient."""
    return torch.where(weight.detach() >= 0, 1.0, -1.0).to(weight)


def _start(start: Start, rows: int, size: int, seed: int) -> Tensor:
    """Matrix ``(M, B^2)`` in float64 that training starts from."""
    if shapes_only():
        return torch.empty(rows, size**2, dtype=torch.float64)
    check_matrix_memory(rows, size**2)
    if start == "gaussian":
        return orthonormal_rows(gaussian_matrix(rows, size**2, seed))
    if start == "signs":
        return torch.from_numpy(2.0 * np.random.RandomState(seed).randint(0, 2, (rows, size**2)) - 1) / size
    cosines = dct_matrix(size, torch.float64, torch.device("cpu"))
    frequencies = torch.arange(size)
    radius = frequencies[:, None] ** 2 + frequencies**2
    lowest = radius.flatten().argsort(stable=True)[:rows]
    return torch.kron(cosines, cosines)[lowest]
