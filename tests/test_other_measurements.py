"""Inpainting, MRI and tomography: what is measured, and that every kind of method reconstructs from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cs_models.cli import evaluate as evaluation
from cs_models.errors import UserError
from cs_models.evaluation.results import ResultsFile
from cs_models.networks.diffusion.ddnm import DDNM
from cs_models.networks.diffusion.idm import IDMConfig, IDMModule, IDMTraining
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANetConfig, ISTANetModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.scnet import SCNetConfig, SCNetModule
from cs_models.operators import FourierOperator, RadonOperator, Sampling, make_operator
from cs_models.reconstruction import Reconstructor
from cs_models.training.module import ReconstructionModule
from cs_models.zoo.methods import build_method
from tests.conftest import REPOSITORY

MEASUREMENTS = ["pixel", "cartesian", "radial", "radon"]
SIZE = (32, 32)
SMALL_UNET = {
    "block_out_channels": (16, 32, 64, 64), "attention_head_dim": 4, "norm_num_groups": 4,
    "cross_attention_dim": 8, "layers_per_block": 1,
}  # fmt: skip


def blob(size: tuple[int, int], x: float, y: float, width: float) -> torch.Tensor:
    """A Gaussian at (x, y) from the image's centre, ``(1, 1, H, W)`` in float64."""
    rows = torch.arange(size[0], dtype=torch.float64)[:, None] - (size[0] - 1) / 2
    columns = torch.arange(size[1], dtype=torch.float64) - (size[1] - 1) / 2
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2))[None, None]


def test_projections_of_a_gaussian_are_gaussians() -> None:
    """Their places follow the angle, their integral is the image's: the closed form of the Radon transform."""
    operator = RadonOperator((48, 40), views=7).double()
    y = operator(blob((48, 40), 5.0, -8.0, 3.0))[0, 0] * math.sqrt(7 * 48)
    detectors = torch.arange(48, dtype=torch.float64) - 23.5
    for view, profile in enumerate(y):
        angle = (view + 0.5) * math.pi / 7
        place = 5.0 * math.cos(angle) - 8.0 * math.sin(angle)
        # Sharing a pixel between two detectors widens the profile by the variance of a triangle at most.
        expected = math.sqrt(2 * math.pi) * 3.0 * torch.exp(-((detectors - place) ** 2) / (2 * 3.0**2))
        assert (profile - expected).abs().max() < 0.03 * expected.max()


@pytest.mark.parametrize(("size", "views"), [((32, 32), 1), ((32, 32), 6), ((24, 40), 9), ((48, 16), 20)])
def test_the_scale_is_that_of_orthonormal_rows(size: tuple[int, int], views: int) -> None:
    operator = RadonOperator(size, views).double()
    pixels = torch.eye(math.prod(size), dtype=torch.float64).view(-1, 1, *size)
    largest = torch.linalg.matrix_norm(operator(pixels).flatten(1), ord=2).item()
    assert 0.7 < largest < 1.05


def test_views_and_ratio() -> None:
    assert make_operator("radon", 0.1, (64, 64)).views == 6
    assert make_operator("radon:6", 0.1, (64, 64)).spec == {"kind": "radon", "ratio": 0.1, "views": 6}
    with pytest.raises(UserError, match=r"10 views measure a 64x64 image at ratio 0\.156") as caught:
        make_operator("radon:10", 0.1, (64, 64))
    assert "\n" not in str(caught.value)
    assert make_operator("radon:10", 0.156, (64, 64)).views == 10
    with pytest.raises(UserError, match="at least 1 view"):
        RadonOperator((8, 8), 0)
    with pytest.raises(UserError, match="take fewer views or smaller images"):
        RadonOperator((2, 2000), 11).pinv(torch.zeros(1, 1, 11, 2000))


def test_the_factor_is_shared_by_all_images_of_a_size() -> None:
    operator = make_operator("radon", 0.2, SIZE)
    assert operator.resized(*SIZE) is operator
    assert operator.resized(16, 24).views == operator.views


@pytest.mark.parametrize("ratio", [0.04, 0.2, 0.5, 1.0])
def test_cartesian_masks_are_columns(ratio: float) -> None:
    mask = FourierOperator.cartesian(ratio, (20, 101), seed=3).mask
    columns = mask[0]
    assert torch.equal(mask, columns.expand(20, -1))
    assert columns[:3].all()
    assert torch.equal(columns[1:], columns[1:].flip(0))
    assert ratio <= columns.float().mean() <= ratio + 2 / 101
    larger = FourierOperator.cartesian(min(1.0, ratio + 0.2), (20, 101), seed=3).mask
    assert not (mask & ~larger).any()


def test_the_released_masks(real_data: Path) -> None:
    """ISTA-Net+'s masks for MRI: the normal map is an orthogonal projector."""
    files = sorted((real_data / "official").rglob("mask_*.mat"))
    assert files
    for file in files:
        ratio = int(file.stem.rpartition("_")[2]) / 100
        operator = make_operator(str(file), ratio, (256, 256)).double()
        assert isinstance(operator, FourierOperator)
        assert operator.ratio == pytest.approx(ratio, abs=0.02)
        x = torch.rand(1, 1, 256, 256, dtype=torch.float64)
        once = operator.normal(x)
        torch.testing.assert_close(operator.normal(once), once)
        assert operator.mask[0, 0]


def reconstructor(name: str, tiny_ddpm: Path) -> Reconstructor:
    if name == "ddnm":
        return DDNM(model=str(tiny_ddpm), steps=2)
    if name == "ista_net_plus_mri":
        sampling = UnfoldingTraining(Sampling(ratios=(0.3,), kind="fourier"))
        return ISTANetModule(ISTANetConfig(layers=2, features=4, start="adjoint"), sampling)
    if name == "coast":
        return COASTModule(COASTConfig(layers=2, features=4))
    if name == "idm":
        return IDMModule(IDMConfig(2, unet=SMALL_UNET))
    return build_method(name, 0.3)


@pytest.mark.parametrize(
    "name", ["tv", "weighted_l1", "fista", "pnp", "linear", "ddnm", "idm", "ista_net_plus_mri", "coast"]
)
@pytest.mark.parametrize("word", MEASUREMENTS)
def test_every_kind_of_method_takes_them(word: str, name: str, tiny_ddpm: Path) -> None:
    operator = make_operator(word, 0.3, SIZE)
    x = (blob(SIZE, 3, -4, 6) > 0.4).float().repeat(1, 3, 1, 1)
    y = operator(x)
    estimate = reconstructor(name, tiny_ddpm).reconstruct(y, operator)
    assert estimate.shape == x.shape
    assert estimate.isfinite().all()
    if name in ("tv", "pnp", "ddnm"):
        assert (operator(estimate) - y).norm() < 0.05 * y.norm()
    if name == "tv":
        assert (estimate - x).norm() < (operator.pinv(y) - x).norm()


@pytest.mark.parametrize("kind", MEASUREMENTS)
@pytest.mark.parametrize("name", ["coast", "scnet", "idm"])
def test_networks_learn_from_them(name: str, kind: Any) -> None:
    training = UnfoldingTraining(Sampling(ratios=(0.3,), kind=kind))
    modules: dict[str, Callable[[], ReconstructionModule]] = {
        "coast": lambda: COASTModule(COASTConfig(layers=2, features=4), training),
        "scnet": lambda: SCNetModule(SCNetConfig(layers=2, features=4), training),
        "idm": lambda: IDMModule(IDMConfig(2, unet=SMALL_UNET), IDMTraining(training.sampling)),
    }
    module, x = modules[name](), (blob(SIZE, 3, -4, 6) > 0.4).float()
    optimizer = torch.optim.Adam(module.network.parameters(), 3e-3)
    losses = []
    for step in range(3):
        operator = module.training_operator(SIZE, step)
        loss = module.training_loss(x, operator.measure(x), operator, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.constrain()
        losses.append(loss.item())
    for parameter in module.network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert len(set(losses)) == 3


def test_every_image_may_be_measured_in_an_order_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a", "b"):
        Image.fromarray((255 * blob((40, 40), 3, -4, 8)[0, 0]).numpy().astype(np.uint8)).save(images / f"{name}.png")
    words = ["--methods", "pinv", "--datasets", str(images), "--ratios", "0.3", "--device", "cpu"]
    words += ["--out", str(tmp_path / "out"), "--operator"]
    assert evaluation.main([*words, "structured:8"]) == 0
    for operator in ("structured:8", "pixel"):
        assert evaluation.main([*words, operator, "--draw_per_image"]) == 0
    rows = ResultsFile(tmp_path / "out").rows()
    drawn = ["structured:8, drawn per image", "pixel, drawn per image"]
    assert [row.operator for row in rows[::2]] == ["structured:8", *drawn]
    assert [rows[k].psnr_db == rows[k + 1].psnr_db for k in (0, 2, 4)] == [True, False, False]
    assert evaluation.main([*words, "block:8", "--draw_per_image"]) == 2
    assert "measure with structured or pixel" in capsys.readouterr().err


def test_tomography_without_noise_is_exact_for_ddnm(tiny_ddpm: Path) -> None:
    operator = make_operator("radon", 0.2, SIZE).double()
    y = operator(blob(SIZE, 3, -4, 6))
    estimate = DDNM(model=str(tiny_ddpm), steps=3).reconstruct(y, operator)
    assert (operator(estimate) - y).norm() < 1e-9 * y.norm()
    noisy = make_operator("radon", 0.2, SIZE, noise_sigma=0.1)
    with pytest.raises(UserError, match="'radon' sampling has neither"):
        DDNM(model=str(tiny_ddpm), steps=3).reconstruct(y.float(), noisy)


@pytest.mark.parametrize("config", ["inpainting", "mri", "ct"])
def test_one_command_each(config: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray((255 * blob((40, 40), 3, -4, 8)[0, 0]).numpy().astype(np.uint8)).save(images / "blob.png")
    words = ["--config", str(REPOSITORY / f"configs/eval/{config}.yaml"), "--datasets", str(images)]
    assert evaluation.main([*words, "--ratios", "0.2", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    report = (tmp_path / "out/report.md").read_text()
    for method in ("pinv", "tv", "pnp", "r_coast"):
        assert method in report
    assert (tmp_path / "out/figures/images_images.png").is_file()
