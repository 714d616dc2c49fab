"""Feature modulation: channel gains from the sampling and from the position in the recursion.

COAST's units and the recursive ones of "Recursions Are All You Need". One unit is shared by all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FMU(nn.Module):
    """Feature Modulation Unit of COAST: one linear map from the ratio M / N, and the noise level on request.

    The noise level enters as sigma / 5, sigma being on the 0-255 scale.
    """

    def __init__(self, features: int, noise: bool = False) -> None:
        """
        Args:
            features: channels to modulate.
            noise: whether the unit sees the noise level.
        """
        super().__init__()
        self.noise = noise
        self.linear = nn.Linear(2 if noise else 1, features)

    def forward(self, ratio: float, noise_sigma: float) -> Tensor:
        """Channel gains ``(features,)`` from M / N and the noise level on the [0, 1] scale."""
        inputs = [ratio, noise_sigma * 255 / 5] if self.noise else [ratio]
        # Filled on the device: a tensor of Python's numbers is copied there, and the host waits for it.
        return self.linear(torch.cat([self.linear.weight.new_full((1,), value) for value in inputs]))


class RFMU(nn.Module):
    """Recursive Feature Modulation Unit: a two-layer network of the ratio and the position in the recursion.

    Inputs are ``[2 M/N, R_total / S, R_current / S]`` with S the iterations of the network's full schedule, or
    the last two alone for a network that knows one ratio only.
    """

    def __init__(self, features: int, full_iterations: int, with_ratio: bool = True) -> None:
        """
        Args:
            features: channels to modulate, and width of the hidden layer.
            full_iterations: S.
            with_ratio: whether the unit sees the ratio.
        """
        super().__init__()
        self.full_iterations = full_iterations
        self.with_ratio = with_ratio
        self.layers = nn.Sequential(
            nn.Linear(3 if with_ratio else 2, features), nn.ReLU(), nn.Linear(features, features)
        )

    def forward(self, ratio: float, total: int) -> Tensor:
        """Channel gains ``(total, features)`` of the iterations 1 to `total`."""
        weight = next(self.parameters())
        current = torch.arange(1, total + 1, device=weight.device, dtype=weight.dtype) / self.full_iterations
        inputs = [torch.full_like(current, total / self.full_iterations), current]
        if self.with_ratio:
            inputs.insert(0, torch.full_like(current, 2 * ratio))
        return self.layers(torch.stack(inputs, dim=-1))


def channel_gains(gains: Tensor) -> Tensor:
    """Gains ``(C,)`` in the shape that multiplies features ``(N, C, H, W)``."""
    return gains.view(1, -1, 1, 1)
