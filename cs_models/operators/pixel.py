"""Random pixels: inpainting, and the tutorial's LASSO on a DCT basis."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cs_models.operators.base import MeasurementOperator
from cs_models.operators.matrices import rows_for_ratio


class PixelOperator(MeasurementOperator):
    """Keeps the first ``round(ratio H W)`` pixels of a random permutation; measurements ``(N, C, m)``.

    The rows are rows of the identity, so the pseudo-inverse is the adjoint: an image with zeros elsewhere.
    """

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
        self.seed = seed
        count = self.image_size[0] * self.image_size[1]
        permutation = np.random.RandomState(seed).permutation(count)
        self.register_buffer("pixels", torch.from_numpy(permutation[: rows_for_ratio(ratio, count)]))

    @property
    def mask(self) -> Tensor:
        """Boolean ``(H, W)``, true at the pixels that are kept."""
        kept = torch.zeros(self.image_size[0] * self.image_size[1], dtype=torch.bool, device=self.pixels.device)
        kept[self.pixels] = True
        return kept.view(self.image_size)

    def resized(self, height: int, width: int) -> PixelOperator:
        other = PixelOperator((height, width), self.ratio, self.seed, self.noise_sigma)
        return other.to(self.pixels.device)

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "pixel", "ratio": self.ratio, "seed": self.seed}

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
