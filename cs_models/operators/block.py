"""Block sampling: one matrix on every B x B block (the ISTA-Net family, B = 33)."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

from cs_models.operators.base import SquareBlocksOperator
from cs_models.operators.components import principal_rows, principal_source
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows, rows_for_ratio


class BlockOperator(SquareBlocksOperator):
    """Samples every B x B block by the same matrix.

    Blocks go row by row over the image, pixels row by row inside a block. Images whose sides are not multiples
    of B are padded with zeros at the bottom and at the right.
    """

    @classmethod
    def gaussian(
        cls,
        ratio: float,
        image_size: tuple[int, int],
        block_size: int = 33,
        seed: int = 0,
        noise_sigma: float = 0.0,
    ) -> BlockOperator:
        """Gaussian rows, made orthonormal; the rows of a smaller ratio are the first rows of a larger one."""
        n = block_size**2
        matrix = orthonormal_rows(gaussian_matrix(rows_for_ratio(ratio, n), n, seed)).float()
        return cls(matrix, image_size, ratio, noise_sigma, {"seed": seed})

    @classmethod
    def principal(
        cls,
        ratio: float,
        image_size: tuple[int, int],
        block_size: int = 33,
        seed: int = 0,
        noise_sigma: float = 0.0,
    ) -> BlockOperator:
        """Principal components of the blocks of photographs as rows, orthonormal and nested; the same for every seed.

        Raises:
            UserError: if the package has none for this block size.
        """
        matrix = principal_rows(rows_for_ratio(ratio, block_size**2), block_size)
        return cls(matrix, image_size, ratio, noise_sigma, principal_source(block_size))

    def with_matrix(self, matrix: Tensor, ratio: float, noise_sigma: float) -> BlockOperator:
        return BlockOperator(matrix, self.image_size, ratio, noise_sigma, self.source)

    def _for_size(self, image_size: tuple[int, int]) -> BlockOperator:
        return BlockOperator(self.matrix, image_size, self.ratio, self.noise_sigma, self.source)

    @property
    def spec(self) -> dict[str, Any]:
        return self._facts("block") | {"block_size": self.block_size}

    def signals(self, x: Tensor) -> Tensor:
        return rearrange(self.pad(x), "n c (h p) (w q) -> n c (h w) (p q)", p=self.block_size, q=self.block_size)

    def image(self, signals: Tensor) -> Tensor:
        blocks = rearrange(
            signals, "n c (h w) (p q) -> n c (h p) (w q)", h=self.grid[0], p=self.block_size, q=self.block_size
        )
        return self.crop(blocks)
