"""The field's protocol: how an image is measured and scored, and which facts determine a score."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from cs_models.metrics import PEAK, pcc, psnr, sparse_rate, ssim_1d
from cs_models.operators import MeasurementOperator
from cs_models.operators.bank import mix

RATES: tuple[Literal["dct", "fft"], ...] = ("dct", "fft")


def score(estimate: Tensor, target: Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM of one image.

    The PSNR comes from the float64 MSE of unrounded pixels; the SSIM is scikit-image's own with its default
    7x7 uniform window and a data range of 255, the mean over channels for colour.

    Args:
        estimate: ``(C, H, W)``, clipped to [0, 1].
        target: ``(C, H, W)`` in [0, 1], at least 7x7.
    """
    from skimage.metrics import structural_similarity

    psnr_db = psnr(estimate[None], target[None]).item()
    a, b = PEAK * estimate.double().numpy(), PEAK * target.double().numpy()
    return psnr_db, float(structural_similarity(b, a, data_range=PEAK, channel_axis=0))


def score_signal(estimate: Tensor, target: Tensor) -> dict[str, float]:
    """What the table says of a reconstructed signal: ``psnr_db`` (peak 1), ``ssim`` (1-D), ``pcc`` and ``mse``.

    Args:
        estimate: ``(1, n, 1)``, clipped to [0, 1].
        target: ``(1, n, 1)`` in [0, 1], n at least 11.
    """
    psnr_db = psnr(estimate[None], target[None]).item()
    x, signal = rearrange(estimate, "1 n 1 -> 1 n"), rearrange(target, "1 n 1 -> 1 n")
    return {
        "psnr_db": psnr_db,
        "ssim": ssim_1d(x, signal).item(),
        "pcc": pcc(x, signal).item(),
        "mse": 10 ** (-psnr_db / 10),
    }


def sparse_rates(image: Tensor) -> dict[str, float]:
    """``sparse_rate_dct`` and ``sparse_rate_fft`` of an image ``(C, H, W)``, means of its channels.

    A signal ``(1, n, 1)`` is an image of one column, whose 2-D transforms are those of the signal.
    """
    return {f"sparse_rate_{by}": sparse_rate(image, by).mean().item() for by in RATES}


def measure(operator: MeasurementOperator, image: Tensor, seed: int, bits: int | None = None) -> Tensor:
    """Measurements ``(1, C, ...)`` of one image ``(C, H, W)``, with noise and quantisation.

    The noise depends on the seed and on the image alone, not on the order of the images or on the device.

    Args:
        operator: A; its `noise_sigma` is the noise.
        image: on the device of the operator.
        seed: of the operator's draw.
        bits: see `quantise`; None for exact measurements.
    """
    generator = torch.Generator().manual_seed(mix(seed, int(image_sha256(image)[:12], 16)))
    y = operator.measure(image[None], generator)
    return y if bits is None else quantise(y, bits)


def quantise(y: Tensor, bits: int) -> Tensor:
    """Round to the middles of ``2^bits`` equal cells between the smallest and the largest value of each image.

    Args:
        y: measurements ``(N, ...)``; of complex ones the real and imaginary parts are rounded.
        bits: at least 1.
    """
    if y.is_complex():
        return torch.view_as_complex(quantise(torch.view_as_real(y), bits))
    flat = y.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    cell = ((high - low) / 2**bits).clamp_min(torch.finfo(y.dtype).tiny)
    index = torch.floor((flat - low) / cell).clamp(0, 2**bits - 1)
    return (low + (index + 0.5) * cell).view_as(y)


def image_sha256(image: Tensor) -> str:
    """Hexadecimal sha256 of an image's values."""
    return hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest()


def short_hash(facts: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any of the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def fits_ratio(measured: float, asked: float) -> bool:
    """Whether an operator measures what was asked for, to a tenth."""
    return abs(measured - asked) <= 0.1 * asked


def operator_label(operator: MeasurementOperator) -> str:
    """A few words that name an operator in tables, such as ``block:33`` or ``block:33 from phi.npy``."""
    spec = operator.spec
    block = getattr(operator, "block_size", None)
    name = spec["kind"] if block is None else f"{spec['kind']}:{block}"
    if "file" in spec:
        return f"{name} from {spec['file']}"
    return f"{name} from checkpoint" if "carried_by" in spec else name
