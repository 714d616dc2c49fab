"""Injectors: the measurements enter a U-Net's features (Chen et al., TPAMI 2025, Sec. 3.3)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs_models.errors import UserError


class Normal(Protocol):
    """What an injector needs of an operator: to see an image through it."""

    def normal(self, x: Tensor) -> Tensor:
        """``A^T A x`` of images ``(N, C, H, W)``."""
        ...


class Injector(nn.Module):
    """Adds to features what the operator sees in them.

    The features are turned into an image f; ``[f, A^T A f, A^T y]`` is turned back into features. Every sampling
    step has its own pair of convolutions.

    Attributes:
        scale: r, pixels of the image per feature in each direction.
        to_image: of each step, the convolution from C / r^2 channels at the image's size to f.
        to_features: of each step, the convolution back.
    """

    def __init__(self, features: int, scale: int, steps: int, image_channels: int = 1, kernel_size: int = 1) -> None:
        """
        Args:
            features: C, a multiple of r^2.
            scale: r.
            steps: T.
            image_channels: 1, or 3 for colour.
            kernel_size: 1 reproduces the paper's parameter count, 3 its text.

        Raises:
            UserError: if r^2 does not divide C.
        """
        super().__init__()
        width, rest = divmod(features, scale**2)
        if rest:
            raise UserError(
                f"an injector at 1/{scale} of the image's size needs a multiple of {scale**2} features, "
                f"got {features}; change block_out_channels"
            )
        self.scale = scale
        self.to_image = nn.ModuleList(
            nn.Conv2d(width, image_channels, kernel_size, padding="same") for _ in range(steps)
        )
        self.to_features = nn.ModuleList(
            nn.Conv2d(3 * image_channels, width, kernel_size, padding="same") for _ in range(steps)
        )

    def forward(self, x: Tensor, step: int, operator: Normal, aty: Tensor) -> Tensor:
        """Features with what was injected.

        Args:
            x: features ``(N, C, H / r, W / r)``.
            step: index t - 1 of the sampling step.
            operator: A on images of H x W, or whatever stands for ``A^T A``.
            aty: ``A^T y``, ``(N, 1 or 3, H, W)``.
        """
        # A shuffle by 1 would copy the features, for the backward pass too.
        pixels = x if self.scale == 1 else F.pixel_shuffle(x, self.scale)
        image = self.to_image[step](pixels).to(aty.dtype)
        seen = torch.cat([image, operator.normal(image), aty], dim=1)
        return x + F.pixel_unshuffle(self.to_features[step](seen), self.scale)
