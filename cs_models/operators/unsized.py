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

    def __init__(
        self, matrix: Tensor, image_size: tuple[int, int], block_size: int, ratio: float, whole: bool = False
    ) -> None:
        """
        Args:
            matrix: ``(M, B^2)``.
            image_size: (H, W), integers or symbolic ones.
            block_size: B.
            ratio: nominal ratio, which networks may be told.
            whole: images are whole blocks, with nothing to pad or to crop.
        """
        nn.Module.__init__(self)  # the operators' own constructors check the size
        self.register_buffer("matrix", matrix)
        self.image_size = image_size
        self.block_size = block_size
        self.ratio = ratio
        self.noise_sigma = 0.0
        self.whole = whole
        height, width = image_size
        self.grid = (height + block_size - 1) // block_size, (width + block_size - 1) // block_size
        # Made once, so that a graph does not make them in each of a network's iterations.
        self._measuring = rearrange(matrix, "m (p q) -> m 1 p q", p=block_size)
        self._placing = rearrange(matrix, "m n -> n m 1 1")

    def resized(self, height: int, width: int) -> UnsizedBlocks:
        return UnsizedBlocks(self.matrix, (height, width), self.block_size, self.ratio)

    def padded(self) -> UnsizedBlocks:
        return UnsizedBlocks(self.matrix, self.padded_size, self.block_size, self.ratio, whole=True)

    def check_images(self, x: Tensor) -> None:
        """Nothing: sizes are not known yet."""

    def check_measurements(self, y: Tensor) -> None:
        """Nothing: sizes are not known yet."""

    def crop(self, x: Tensor) -> Tensor:
        height, width = self.image_size
        return x if self.whole else x.narrow(-2, 0, height).narrow(-1, 0, width)

    def pad(self, x: Tensor) -> Tensor:
        """Images with B - 1 more rows and columns of zeros, of which `forward` sees those that whole blocks need."""
        return x if self.whole else F.pad(x, (0, self.block_size - 1, 0, self.block_size - 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._maps(x).flatten(2).transpose(1, 2).unsqueeze(1)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._image(rearrange(y, "n 1 (h w) m -> n m h w", h=self.grid[0]))

    def normal(self, x: Tensor) -> Tensor:
        return self._image(self._maps(x))

    def _maps(self, x: Tensor) -> Tensor:
        """Measurements ``(N, M, rows, columns)`` of images, block by block."""
        return F.conv2d(self.pad(x), self._measuring, stride=self.block_size)

    def _image(self, maps: Tensor) -> Tensor:
        """``A^T`` of such measurements."""
        return self.crop(F.pixel_shuffle(F.conv2d(maps, self._placing), self.block_size))

    def with_matrix(self, matrix: Tensor, ratio: float, noise_sigma: float) -> BlockOperator:
        raise NotImplementedError("a traced operator keeps its matrix")

    @property
    def spec(self) -> dict[str, Any]:
        raise NotImplementedError("a traced operator has no size to speak of")
