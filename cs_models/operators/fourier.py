"""Masked Fourier sampling: single-coil MRI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.checks import check_image_size
from cs_models.operators.matrices import check_ratio, tensor_sha256


class FourierOperator(MeasurementOperator):
    """Keeps the coefficients of the orthonormal 2-D Fourier transform that a mask names.

    Measurements are complex, ``(N, C, m)``. For real images the adjoint takes the real part, the adjoint under
    the real inner product; then ``A^T A`` is ``real(ifft2(mask fft2(x)))``, an orthogonal projector for a
    point-symmetric mask (ISTA-Net+ for MRI). A mask without that symmetry measures some pairs of conjugate
    coefficients once and others twice, which `pinv` evens out.
    """

    unit_norm = True

    mask: Tensor
    coefficients: Tensor

    def __init__(
        self,
        mask: Tensor,
        ratio: float | None = None,
        noise_sigma: float = 0.0,
        complex_images: bool = False,
        source: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            mask: boolean ``(H, W)``, zero frequency at [0, 0].
            ratio: nominal ratio; the share of true values where it is not given.
            noise_sigma: standard deviation of the real and of the imaginary part of the noise.
            complex_images: whether images are complex; the adjoint then keeps the imaginary part.
            source: seed, or file and sha256, for `spec`.
        """
        mask = mask.bool()
        if mask.ndim != 2 or not mask.any():
            raise UserError(f"a Fourier mask is a matrix with at least one true value, got shape {tuple(mask.shape)}")
        super().__init__(
            (mask.shape[0], mask.shape[1]), mask.float().mean().item() if ratio is None else ratio, noise_sigma
        )
        self.complex_images = complex_images
        self.source: dict[str, Any] = {"sha256": tensor_sha256(mask)} if source is None else source
        self.register_buffer("mask", mask)
        self.register_buffer("coefficients", mask.flatten().nonzero()[:, 0])

    @classmethod
    def cartesian(
        cls, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> FourierOperator:
        """Whole columns of the spectrum, as a scanner's phase encoding gives them: the lowest 4 % and random others.

        The density of the others falls with the frequency. Columns of opposite frequencies are taken together, so that
        the mask is point-symmetric; a smaller ratio's mask is part of a larger one's.
        """
        check_ratio(ratio)
        mask = torch.from_numpy(_cartesian_mask(ratio, check_image_size(image_size), seed))
        return cls(mask, ratio, noise_sigma, source={"seed": seed, "pattern": "cartesian"})

    @classmethod
    def radial(
        cls, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> FourierOperator:
        """Pseudo-radial, point-symmetric mask: equally spaced lines through the zero frequency.

        Lines are added at the golden angle from a seeded start until the ratio is reached, so that a smaller
        ratio's mask is part of a larger one's.
        """
        check_ratio(ratio)
        mask = torch.from_numpy(_radial_mask(ratio, check_image_size(image_size), seed))
        return cls(mask, ratio, noise_sigma, source={"seed": seed, "pattern": "radial"})

    def resized(self, height: int, width: int) -> FourierOperator:
        if (height, width) == self.image_size:
            return self
        if "pattern" not in self.source:
            raise UserError(
                f"this Fourier mask is for {self.image_size[0]}x{self.image_size[1]} images, not {height}x{width}"
            )
        draw = MASKS[self.source["pattern"]]
        other = draw(self.ratio, (height, width), self.source["seed"], self.noise_sigma)
        return other.to(self.mask.device)

    @property
    def spec(self) -> dict[str, Any]:
        kind = self.source.get("pattern", "fourier")
        return {"kind": kind, "ratio": self.ratio, "complex_images": self.complex_images, **self.source}

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return (len(self.coefficients),)

    def forward(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fft2(x, norm="ortho")
        return rearrange(spectrum, "n c h w -> n c (h w)")[..., self.coefficients]

    def adjoint(self, y: Tensor) -> Tensor:
        height, width = self.image_size
        flat = y.new_zeros(*y.shape[:2], height * width).index_copy(-1, self.coefficients, y)
        return self._to_image(rearrange(flat, "n c (h w) -> n c h w", h=height))

    def pinv(self, y: Tensor) -> Tensor:
        if self.complex_images:
            return self.adjoint(y)
        # On real images A^T A multiplies the spectrum by the mean of the mask and its point reflection.
        reflected = torch.roll(self.mask.flip(0, 1), (1, 1), (0, 1))
        weight = (self.mask.float() + reflected.float()) / 2
        spectrum = torch.fft.fft2(self.adjoint(y), norm="ortho")
        return self._to_image(torch.where(weight > 0, spectrum / weight.clamp_min(0.5), 0))

    def measure(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        y = self(x)
        if self.noise_sigma == 0:
            return y
        noise = torch.randn(*y.shape, 2, generator=generator, dtype=y.real.dtype)
        return y + self.noise_sigma * torch.view_as_complex(noise).to(y.device, non_blocking=True)

    def _to_image(self, spectrum: Tensor) -> Tensor:
        image: Tensor = torch.fft.ifft2(spectrum, norm="ortho")
        return image if self.complex_images else image.real


# The masks that are drawn for any image size.
MASKS: dict[str, Callable[[float, tuple[int, int], int, float], FourierOperator]] = {
    "radial": FourierOperator.radial,
    "cartesian": FourierOperator.cartesian,
}


def _cartesian_mask(ratio: float, image_size: tuple[int, int], seed: int) -> np.ndarray:
    height, width = image_size
    frequencies = np.arange(width // 2 + 1)
    # The largest of (log of the density + Gumbel noise) first: draws without replacement, nested in their number.
    noise = np.random.RandomState(seed).gumbel(size=len(frequencies))
    keys = np.where(frequencies <= 0.02 * width, np.inf, noise - np.log(np.maximum(frequencies, 1)))
    columns = np.zeros(width, dtype=bool)
    for frequency in np.lexsort((frequencies, -keys)):
        if columns.mean() >= ratio:
            break
        columns[[frequency, -frequency % width]] = True
    return np.tile(columns, (height, 1))


def _radial_mask(ratio: float, image_size: tuple[int, int], seed: int) -> np.ndarray:
    height, width = image_size
    mask = np.zeros((height, width), dtype=bool)
    reach = np.hypot(height, width) / 2
    radius = np.arange(-reach, reach + 0.5, 0.5)
    angle = np.random.RandomState(seed).uniform(0, np.pi)
    golden_angle = np.pi * (np.sqrt(5) - 1) / 2
    while mask.mean() < ratio:
        rows, columns = np.rint(radius * np.sin(angle)), np.rint(radius * np.cos(angle))
        inside = (np.abs(rows) <= height / 2) & (np.abs(columns) <= width / 2)
        rows, columns = rows[inside].astype(int), columns[inside].astype(int)
        mask[rows % height, columns % width] = True
        mask[-rows % height, -columns % width] = True
        angle += golden_angle
    return mask
