"""Image and signal quality, one value for each image or signal.

The functions on images give what the field's protocol gives (scikit-image's defaults on the scale 0 .. 255), but
batched, on any device, and without leaving it; training and validation use them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cs_models.transforms.dct import dct

PEAK = 255.0
WINDOW = 7


def psnr(x: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``10 log10(255^2 / MSE)`` with the MSE in float64; infinite for equal images.

    Args:
        x: images ``(N, C, H, W)`` in [0, 1], not rounded to 8 bits.
        target: images of the same shape.

    Returns:
        ``(N,)`` in float64.
    """
    _same_shape(x, target)
    error = (x.double() - target.double()).flatten(1).square().mean(1)
    return -10 * torch.log10(error)


def ssim(x: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) as scikit-image computes it by default.

    Uniform 7x7 windows inside the image, sample covariances, K1 = 0.01, K2 = 0.03, data range 255; the mean over
    channels for colour images.

    Args:
        x: images ``(N, C, H, W)`` in [0, 1], both sides at least 7.
        target: images of the same shape.

    Returns:
        ``(N,)`` in float64.
    """
    _same_shape(x, target)
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim needs images of at least {WINDOW}x{WINDOW}, got {tuple(x.shape)}")
    a, b = PEAK * x.double(), PEAK * target.double()
    pixels = WINDOW**2
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (
        F.avg_pool2d(image, WINDOW, stride=1) for image in (a, b, a * a, b * b, a * b)
    )
    unbiased = pixels / (pixels - 1)
    similarity = _similarity(
        mean_a,
        mean_b,
        unbiased * (mean_aa - mean_a * mean_a),
        unbiased * (mean_bb - mean_b * mean_b),
        unbiased * (mean_ab - mean_a * mean_b),
        c1=(0.01 * PEAK) ** 2,
        c2=(0.03 * PEAK) ** 2,
    )
    return similarity.flatten(1).mean(1)


def ssim_1d(x: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of 1-D signals as the CLOMP paper measures it.

    Gaussian window of 11 taps and sigma 1.5 inside the signal, ``C1 = (0.06 R)^2``, ``C2 = (0.1 R)^2`` with R the
    range of the target signal; for a constant target it is 1 where x equals it, and next to 0 elsewhere.

    Args:
        x: signals ``(N, n)``, n at least 11.
        target: signals of the same shape.

    Returns:
        ``(N,)`` in float64.
    """
    _same_shape(x, target)
    place = torch.arange(11, dtype=torch.float64, device=x.device) - 5
    taps = torch.exp(-(place**2) / (2 * 1.5**2))
    kernel = rearrange(taps / taps.sum(), "k -> 1 1 k")
    a, b = rearrange(x.double(), "n t -> n 1 t"), rearrange(target.double(), "n t -> n 1 t")
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (F.conv1d(signal, kernel) for signal in (a, b, a * a, b * b, a * b))
    # A range of 0 would make 0 / 0 of a perfect reconstruction.
    signal_range = (b.amax(-1, keepdim=True) - b.amin(-1, keepdim=True)).clamp_min(1e-100)
    similarity = _similarity(
        mean_a,
        mean_b,
        mean_aa - mean_a * mean_a,
        mean_bb - mean_b * mean_b,
        mean_ab - mean_a * mean_b,
        c1=(0.06 * signal_range) ** 2,
        c2=(0.1 * signal_range) ** 2,
    )
    return similarity.flatten(1).mean(1)


def pcc(x: Tensor, target: Tensor) -> Tensor:
    """Pearson's correlation coefficient of signals ``(N, n)``: ``(N,)`` in float64; 0 for a constant signal."""
    _same_shape(x, target)
    a, b = x.double(), target.double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return torch.linalg.vecdot(a, b) / norms.clamp_min(torch.finfo(torch.float64).tiny)


def sparse_rate(signals: Tensor, by: Literal["dct", "fft"] = "dct", share: float = 0.98) -> Tensor:
    """Kr of the CLOMP paper: the share of the coefficients that hold 98 % of the sum of their magnitudes.

    Args:
        signals: ``(N, n)``, or images ``(N, H, W)``, whose transform is the 2-D one.
        by: "dct", as the paper says, or "fft", as its code does.
        share: of the sum.

    Returns:
        ``(N,)`` in float64, at least 1 / n.
    """
    spectrum = signals.double()
    for dim in range(1, signals.ndim):
        spectrum = dct(spectrum, dim) if by == "dct" else torch.fft.fft(spectrum, dim=dim)
    magnitudes = spectrum.abs().flatten(1)
    held = magnitudes.sort(dim=1, descending=True).values.cumsum(1)
    return ((held < share * held[:, -1:]).sum(1) + 1).double() / held.shape[1]


def _similarity(
    mean_a: Tensor,
    mean_b: Tensor,
    variance_a: Tensor,
    variance_b: Tensor,
    covariance: Tensor,
    c1: float | Tensor,
    c2: float | Tensor,
) -> Tensor:
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return luminance * structure


def _same_shape(x: Tensor, target: Tensor) -> None:
    if x.shape != target.shape:
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(target.shape)}")
