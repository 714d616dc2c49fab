"""Block sampling: one matrix on every B x B block (the ISTA-Net family, B = 33)."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators.base import MatrixOperator, full_precision
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows, rows_for_ratio


class BlockOperator(MatrixOperator):
    """Samples every B x B block by the same matrix, as one convolution of stride B.

    Blocks go row by row over the image, pixels row by row inside a block. Images whose sides are not multiples
    of B are padded with zeros at the bottom and at the right.
    """

    def __init__(
        self,
        matrix: Tensor,
        image_size: tuple[int, int],
        ratio: float | None = None,
        noise_sigma: float = 0.0,
        source: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            matrix: ``(M, B^2)``.
            image_size: (H, W), any.
            ratio: nominal ratio; M / B^2 where it is not given.
            noise_sigma: see `MeasurementOperator`.
            source: seed, or file and sha256, for `spec`.

        Raises:
            UserError: if the number of columns is not the square of a block size.
        """
        super().__init__(matrix, image_size, ratio, noise_sigma, source)
        self.block_size = math.isqrt(matrix.shape[1])
        if self.block_size**2 != matrix.shape[1]:
            raise UserError(
                f"a block matrix has B*B columns, such as 1089 for 33x33 blocks; this one has {matrix.shape[1]}"
            )
        height, width = self.image_size
        self.grid = (math.ceil(height / self.block_size), math.ceil(width / self.block_size))

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

    @property
    def padded_size(self) -> tuple[int, int]:
        return self.grid[0] * self.block_size, self.grid[1] * self.block_size

    def resized(self, height: int, width: int) -> BlockOperator:
        return BlockOperator(self.matrix, (height, width), self.ratio, self.noise_sigma, self.source)

    @property
    def spec(self) -> dict[str, Any]:
        return self._facts("block") | {"block_size": self.block_size}

    def _pad(self, x: Tensor) -> Tensor:
        (height, width), (padded_height, padded_width) = self.image_size, self.padded_size
        if x.shape[-2:] != (height, width):
            raise ValueError(f"operator for {height}x{width} images was given {tuple(x.shape)}")
        return F.pad(x, (0, padded_width - width, 0, padded_height - height))

    def signals(self, x: Tensor) -> Tensor:
        return rearrange(self._pad(x), "n c (h p) (w q) -> n c (h w) (p q)", p=self.block_size, q=self.block_size)

    def image(self, signals: Tensor) -> Tensor:
        blocks = rearrange(
            signals, "n c (h w) (p q) -> n c (h p) (w q)", h=self.grid[0], p=self.block_size, q=self.block_size
        )
        return self.crop(blocks)

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        kernel = rearrange(self.matrix, "m (p q) -> m 1 p q", p=self.block_size)
        planes = rearrange(self._pad(x), "n c h w -> (n c) 1 h w")
        y = F.conv2d(planes, kernel, stride=self.block_size)
        return rearrange(y, "(n c) m h w -> n c (h w) m", c=x.shape[1])

    @full_precision
    def adjoint(self, y: Tensor) -> Tensor:
        maps = rearrange(y, "n c (h w) m -> (n c) m h w", h=self.grid[0])
        pixels = F.conv2d(maps, rearrange(self.matrix, "m n -> n m 1 1"))
        planes = F.pixel_shuffle(pixels, self.block_size)
        return self.crop(rearrange(planes, "(n c) 1 h w -> n c h w", c=y.shape[1]))
