"""Batched metrics against scikit-image, numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import fft
from scipy.ndimage import correlate1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from cs_models.metrics import pcc, psnr, sparse_rate, ssim, ssim_1d


def noisy_pair(shape: tuple[int, ...], noise: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(shape, generator=generator)
    target[..., : shape[-1] // 2] = 0.25  # a flat half, where variances are exactly 0
    return (target + noise * torch.randn(shape, generator=generator)).clamp(0, 1), target


@pytest.mark.parametrize("noise", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("shape", [(3, 1, 40, 33), (2, 3, 7, 20)])
def test_image_metrics_equal_scikit_image(shape: tuple[int, ...], noise: float) -> None:
    x, target = noisy_pair(shape, noise)
    for index, (psnr_db, similarity) in enumerate(zip(psnr(x, target), ssim(x, target), strict=True)):
        a, b = 255.0 * x[index].double().numpy(), 255.0 * target[index].double().numpy()
        assert psnr_db.item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-4)
        expected = structural_similarity(b, a, data_range=255, channel_axis=0)
        assert similarity.item() == pytest.approx(expected, abs=1e-4)


def test_equal_images_are_perfect() -> None:
    x = torch.rand(2, 1, 16, 16)
    assert torch.isinf(psnr(x, x)).all()
    assert torch.allclose(ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_images_that_differ_in_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        psnr(torch.zeros(1, 1, 8, 8), torch.zeros(2, 1, 8, 8))


def test_signal_similarity_equals_a_direct_computation() -> None:
    generator = np.random.default_rng(0)
    target = generator.random(50) * 3
    x = target + 0.2 * generator.standard_normal(50)
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def smooth(signal: np.ndarray) -> np.ndarray:
        return correlate1d(signal, taps)[5:-5]

    reach = np.ptp(target)
    c1, c2 = (0.06 * reach) ** 2, (0.1 * reach) ** 2
    mx, mt = smooth(x), smooth(target)
    vx, vt, cov = smooth(x * x) - mx**2, smooth(target * target) - mt**2, smooth(x * target) - mx * mt
    expected = ((2 * mx * mt + c1) * (2 * cov + c2) / ((mx**2 + mt**2 + c1) * (vx + vt + c2))).mean()
    result = ssim_1d(torch.from_numpy(x)[None], torch.from_numpy(target)[None])
    assert result.item() == pytest.approx(expected, rel=1e-10)


def test_similarity_of_a_flat_signal() -> None:
    flat = torch.full((2, 30), 0.3)
    assert ssim_1d(flat, flat).tolist() == [1, 1]
    assert ssim_1d(torch.rand(2, 30), flat).abs().max() < 1e-6


def test_sparse_rate_counts_the_coefficients_that_matter() -> None:
    spectrum = np.zeros((2, 50))
    spectrum[0, [0, 7, 20]] = (3, -2, 0.05)  # the last holds 1 %, which may be missing
    spectrum[1, :10] = 1  # 98 % of ten equal ones takes all ten
    signals = torch.from_numpy(fft.idct(spectrum, norm="ortho"))
    assert sparse_rate(signals, "dct").tolist() == [2 / 50, 10 / 50]
    wave = torch.cos(2 * torch.pi * 5 * torch.arange(50) / 50)[None]
    assert sparse_rate(wave, "fft").tolist() == [2 / 50]
    image = torch.from_numpy(fft.idctn(spectrum.reshape(2, 5, 10), axes=(1, 2), norm="ortho"))
    assert sparse_rate(image, "dct").tolist() == [2 / 50, 10 / 50]
    assert sparse_rate(wave[:, None].expand(1, 8, 50), "fft").tolist() == [2 / 400]


def test_correlation_equals_numpy() -> None:
    x, target = noisy_pair((4, 60), 0.3)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.double(), target.double(), strict=True)]
    assert pcc(x, target).tolist() == pytest.approx(expected)
    assert pcc(torch.ones(1, 5), torch.rand(1, 5)).item() == 0
