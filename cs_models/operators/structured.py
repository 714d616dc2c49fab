"""Structurally random sampling: a permutation of all pixels, then one matrix on pieces of them (IDM)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cs_models.operators.base import SquareBlocksOperator
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows, structured_rows


class StructuredOperator(SquareBlocksOperator):
    """Permutes the pixels of the image, cuts them into vectors of n = B^2 and samples each by the same matrix.

    Images whose sides are not multiples of B are padded with zeros at the bottom and at the right first.
    """

    permutation: Tensor
    inverse: Tensor

    def __init__(
        self,
        matrix: Tensor,
        image_size: tuple[int, int],
        permutation_seed: int = 0,
        ratio: float | None = None,
        noise_sigma: float = 0.0,
        source: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            matrix: ``(M, B^2)``.
            image_size: (H, W), any.
            permutation_seed: seed of the permutation.
            ratio: nominal ratio; M / B^2 where it is not given.
            noise_sigma: see `MeasurementOperator`.
            source: seed, or file and sha256, for `spec`.

        Raises:
            UserError: if the number of columns is not the square of a block size.
        """
        super().__init__(matrix, image_size, ratio, noise_sigma, source)
        self.permutation_seed = permutation_seed
        height, width = self.padded_size
        drawn = torch.from_numpy(np.random.RandomState(permutation_seed).permutation(height * width))
        permutation = drawn.to(matrix.device, non_blocking=True)
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse", torch.argsort(permutation))

    @classmethod
    def gaussian(
        cls,
        ratio: float,
        image_size: tuple[int, int],
        block_size: int = 32,
        seed: int = 0,
        noise_sigma: float = 0.0,
    ) -> StructuredOperator:
        """Orthonormal Gaussian rows, ``q = ceil(ratio B^2)`` of them, and the permutation, both from one seed."""
        n = block_size**2
        matrix = orthonormal_rows(gaussian_matrix(structured_rows(ratio, n), n, seed)).float()
        return cls(matrix, image_size, seed, ratio, noise_sigma, {"seed": seed})

    def with_matrix(self, matrix: Tensor, ratio: float, noise_sigma: float) -> StructuredOperator:
        return StructuredOperator(matrix, self.image_size, self.permutation_seed, ratio, noise_sigma, self.source)

    def permuted(self, seed: int) -> StructuredOperator:
        """The same matrix on pixels in another order."""
        other = StructuredOperator(self.matrix, self.image_size, seed, self.ratio, self.noise_sigma, self.source)
        other.rows = self.rows
        return other

    def _for_size(self, image_size: tuple[int, int]) -> StructuredOperator:
        return StructuredOperator(
            self.matrix, image_size, self.permutation_seed, self.ratio, self.noise_sigma, self.source
        )

    @property
    def spec(self) -> dict[str, Any]:
        return self._facts("structured") | {"permutation_seed": self.permutation_seed}

    def signals(self, x: Tensor) -> Tensor:
        pixels: Tensor = _Reordered.apply(
            rearrange(self.pad(x), "n c h w -> n c (h w)"), self.permutation, self.inverse
        )
        return rearrange(pixels, "n c (l n2) -> n c l n2", n2=self.matrix.shape[1])

    def image(self, signals: Tensor) -> Tensor:
        pixels = _Reordered.apply(rearrange(signals, "n c l n2 -> n c (l n2)"), self.inverse, self.permutation)
        return self.crop(rearrange(pixels, "n c (h w) -> n c h w", h=self.padded_size[0]))


class _Reordered(torch.autograd.Function):
    """``x[..., order]`` for a permutation, whose gradient goes back by the inverse one.

    Autograd would add each number into its place, since an index might name one twice: on GPUs it sorts the index for
    that in every backward pass.
    """

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x[..., order]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reordered.apply(gradient, inverse, order), None, None
