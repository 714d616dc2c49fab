"""Block sampling in graphs that are traced once and then run on images of any size."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cs_models.operators.block import BlockOperator


class UnsizedBlocks(BlockOperator):
    """`BlockOperator` on one-channel images whose size is known when the graph runs, and not when it is traced.

    Sizes may be torch's symbolic integers, of which nothing may be asked. So this neither checks them nor takes
    shortcuts for those that fit, and its `forward` and `adjoint` do without the contexts that graphs cannot hold.
    """

    def __init__(self, matrix: Tensor, image_size: tuple[int, int], block_size: int, ratio: float) -> None:
        """
        Args:
            matrix: ``(M, B^2)``.
            image_size: (H, W), integers or symbolic ones.
            block_size: B.
            ratio: nominal ratio, which networks may be told.
        """
        nn.Module.__init__(self)  # the operators' own constructors check the size
        self.register_buffer("matrix", matrix)
        self.image_size = image_size
        self.block_size = block_size
        self.ratio = ratio
        self.noise_sigma = 0.0
        height, width = image_size
        self.grid = (height + block_size - 1) // block_size, (width + block_size - 1) // block_size

    def resized(self, height: int, width: int) -> UnsizedBlocks:
        return UnsizedBlocks(self.matrix, (height, width), self.block_size, self.ratio)

    def padded(self) -> UnsizedBlocks:
        return self.resized(*self.padded_size)

    def check_images(self, x: Tensor) -> None:
        """Nothing: sizes are not known yet."""

    def check_measurements(self, y: Tensor) -> None:
        """Nothing: sizes are not known yet."""

    def crop(self, x: Tensor) -> Tensor:
        height, width = self.image_size
        return x.narrow(-2, 0, height).narrow(-1, 0, width)

    def pad(self, x: Tensor) -> Tensor:
        """Images with B - 1 more rows and columns of zeros, of which `forward` sees those that whole blocks need."""
        return F.pad(x, (0, self.block_size - 1, 0, self.block_size - 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = rearrange(self.matrix, "m (p q) -> m 1 p q", p=self.block_size)
        y = F.conv2d(self.pad(x), kernel, stride=self.block_size)
        return y.flatten(2).transpose(1, 2).unsqueeze(1)

    def adjoint(self, y: Tensor) -> Tensor:
        maps = rearrange(y, "n 1 (h w) m -> n m h w", h=self.grid[0])
        pixels = F.conv2d(maps, rearrange(self.matrix, "m n -> n m 1 1"))
        return self.crop(F.pixel_shuffle(pixels, self.block_size))

    def with_matrix(self, matrix: Tensor, ratio: float, noise_sigma: float) -> BlockOperator:
        raise NotImplementedError("a traced operator keeps its matrix")

    @property
    def spec(self) -> dict[str, Any]:
        raise NotImplementedError("a traced operator has no size to speak of")
