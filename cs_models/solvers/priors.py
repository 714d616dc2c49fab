"""Smoothness priors on images, with their gradients written out, and a user's own.

A prior is a callable from images ``(N, C, H, W)`` to its value on every plane ``(N, C)`` and the gradient of their
sum ``(N, C, H, W)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Prior = Callable[[Tensor], tuple[Tensor, Tensor]]

SMALLEST_VARIANCE = 1e-12
# Sides of LV's windows.
SMALLEST_WINDOW = 3


def total_variation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared vertical difference plus mean squared horizontal one, each over its own count."""
    value, gradient = x.new_zeros(x.shape[:2]), torch.zeros_like(x)
    for dim in (-2, -1):
        length = x.shape[dim]
        if length == 1:
            continue
        difference = x.diff(dim=dim)
        value = value + difference.square().mean((-2, -1))
        difference *= 2 / (difference.shape[-2] * difference.shape[-1])
        gradient.narrow(dim, 1, length - 1).add_(difference)
        gradient.narrow(dim, 0, length - 1).sub_(difference)
    return value, gradient


def local_variation(x: Tensor) -> tuple[Tensor, Tensor]:
    """CLOMP's LV: mean over 3x3 windows, 2 pixels apart, of the unbiased standard deviation; 0 without a window."""
    if min(x.shape[-2:]) < SMALLEST_WINDOW:
        return x.new_zeros(x.shape[:2]), torch.zeros_like(x)
    mean = _window_sums(x) / 9
    variance = ((_window_sums(x.square()) - 9 * mean.square()) / 8).clamp_min_(SMALLEST_VARIANCE)
    deviation = variance.sqrt()
    # The gradient of a window's deviation is (x - mean) / (8 deviation) at its pixels.
    weight = deviation.reciprocal() / (8 * deviation.shape[-2] * deviation.shape[-1])
    gradient = x * _spread(weight, x) - _spread(weight * mean, x)
    return deviation.mean((-2, -1)), gradient


def differentiated(prior: Callable[[Tensor], Tensor]) -> Prior:
    """A user's prior, from images ``(N, C, H, W)`` to a value for each ``(N,)``, with its gradient by autograd."""

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            image = x.detach().requires_grad_()
            value = prior(image)
            (gradient,) = torch.autograd.grad(value.sum(), image)
        return (value.detach() / x.shape[1])[:, None].expand(x.shape[:2]), gradient

    return value_and_gradient


def _window_sums(x: Tensor) -> Tensor:
    """Sums over 3x3 windows, 2 pixels apart; rows first, since they are contiguous."""
    height, width = ((size - 3) // 2 for size in x.shape[-2:])
    rows = x[..., : 2 * height + 1 : 2, :] + x[..., 1 : 2 * height + 2 : 2, :] + x[..., 2 : 2 * height + 3 : 2, :]
    return rows[..., : 2 * width + 1 : 2] + rows[..., 1 : 2 * width + 2 : 2] + rows[..., 2 : 2 * width + 3 : 2]


def _spread(windows: Tensor, like: Tensor) -> Tensor:
    """Adjoint of `_window_sums`: each window's value added to its nine pixels."""
    height, width = windows.shape[-2:]
    rows = windows.new_zeros(*windows.shape[:-1], like.shape[-1])
    for shift in range(3):
        rows[..., shift : shift + 2 * width - 1 : 2] += windows
    image = torch.zeros_like(like)
    for shift in range(3):
        image[..., shift : shift + 2 * height - 1 : 2, :] += rows
    return image
