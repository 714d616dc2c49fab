"""Random pixels: inpainting, and the tutorial's LASSO on a DCT basis."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.matrices import rows_for_ratio, tensor_sha256


class PixelOperator(MeasurementOperator):
    """Keeps the first ``round(ratio H W)`` pixels of a random permutation; measurements ``(N, C, m)``.

    The rows are rows of the identity, so the pseudo-inverse is the adjoint: an image with zeros elsewhere.
    """

    unit_norm = True

    pixels: Tensor

    def __init__(self, image_size: tuple[int, int], ratio: float, seed: int = 0, noise_sigma: float = 0.0) -> None:
        """
        Args:
            image_size: (H, W).
            ratio: share of the pixels that are kept, in (0, 1]; a smaller share is part of a larger one.
            seed: seed of the permutation (numpy RandomState).
            noise_sigma: see `MeasurementOperator`.
        """
        super().__init__(image_size, ratio, noise_sigma)
        self.source: dict[str, Any] = {"seed": seed}
        count = self.image_size[0] * self.image_size[1]
        permutation = np.random.RandomState(seed).permutation(count)
        self.register_buffer("pixels", torch.from_numpy(permutation[: rows_for_ratio(ratio, count)]))

    @classmethod
    def from_mask(
        cls, mask: Tensor, ratio: float, noise_sigma: float = 0.0, source: dict[str, Any] | None = None
    ) -> PixelOperator:
        """The pixels at which a boolean mask ``(H, W)`` is true, row by row; for images of that size alone."""
        operator = cls((mask.shape[0], mask.shape[1]), ratio, noise_sigma=noise_sigma)
        operator.pixels = mask.flatten().nonzero()[:, 0]
        operator.source = {"sha256": tensor_sha256(mask)} if source is None else source
        return operator

    @property
    def mask(self) -> Tensor:
        """Boolean ``(H, W)``, true at the pixels that are kept."""
        kept = torch.zeros(self.image_size[0] * self.image_size[1], dtype=torch.bool, device=self.pixels.device)
        kept[self.pixels] = True
        return kept.view(self.image_size)

    def resized(self, height: int, width: int) -> PixelOperator:
        if (height, width) == self.image_size:
            return self
        if "seed" not in self.source:
            raise UserError(f"this mask is for {self.image_size[0]}x{self.image_size[1]} images, not {height}x{width}")
        other = PixelOperator((height, width), self.ratio, self.source["seed"], self.noise_sigma)
        return other.to(self.pixels.device)

    def permuted(self, seed: int) -> PixelOperator:
        """As many other pixels; a mask that was given stays."""
        if "seed" not in self.source:
            return self
        return PixelOperator(self.image_size, self.ratio, seed, self.noise_sigma).to(self.pixels.device)

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "pixel", "ratio": self.ratio, **self.source}

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return (len(self.pixels),)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "n c h w -> n c (h w)")[..., self.pixels]

    def adjoint(self, y: Tensor) -> Tensor:
        height, width = self.image_size
        flat = y.new_zeros(*y.shape[:2], height * width).index_copy(-1, self.pixels, y)
        return rearrange(flat, "n c (h w) -> n c h w", h=height)

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)
