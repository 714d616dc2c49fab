"""Full-image sampling: random signs, a 2-D DCT, and some of its coefficients (randomised orthonormal transform)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cs_models.operators.base import MeasurementOperator
from cs_models.operators.matrices import rows_for_ratio
from cs_models.precision import full_precision
from cs_models.transforms.dct import DCT2d


class Transform2dOperator(MeasurementOperator):
    """Flips the signs of random pixels, takes the orthonormal 2-D DCT and keeps random coefficients.

    The signs spread every image over all coefficients, so it samples as well as a dense Gaussian matrix on the whole
    image, in O(n log n) and without a matrix. Measurements are ``(N, C, m)``. The rows are orthonormal, so the
    pseudo-inverse is the adjoint.
    """

    unit_norm = True

    signs: Tensor
    coefficients: Tensor

    def __init__(self, image_size: tuple[int, int], ratio: float, seed: int = 0, noise_sigma: float = 0.0) -> None:
        """
        Args:
            image_size: (H, W), any.
            ratio: share of the coefficients that are kept, in (0, 1]; those of a smaller share are the first ones of a
                larger share.
            seed: seed of the signs, then of the order of the coefficients (numpy RandomState).
            noise_sigma: see `MeasurementOperator`.
        """
        super().__init__(image_size, ratio, noise_sigma)
        self.seed = seed
        height, width = self.image_size
        random = np.random.RandomState(seed)
        signs = 2.0 * random.randint(0, 2, (height, width)) - 1
        order = random.permutation(height * width)
        self._transform = DCT2d()
        self.register_buffer("signs", torch.from_numpy(signs).float())
        self.register_buffer("coefficients", torch.from_numpy(order[: rows_for_ratio(ratio, height * width)].copy()))

    def resized(self, height: int, width: int) -> Transform2dOperator:
        return Transform2dOperator((height, width), self.ratio, self.seed, self.noise_sigma).to(self.signs)

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "transform2d", "ratio": self.ratio, "seed": self.seed}

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return (len(self.coefficients),)

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        spectrum = self._transform.analysis(x * self.signs)
        return rearrange(spectrum, "n c h w -> n c (h w)")[..., self.coefficients]

    @full_precision
    def adjoint(self, y: Tensor) -> Tensor:
        height, width = self.image_size
        flat = y.new_zeros(*y.shape[:2], height * width).index_copy(-1, self.coefficients, y)
        return self._transform.synthesis(rearrange(flat, "n c (h w) -> n c h w", h=height)) * self.signs

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)
