"""DDNM: exact consistency, both steps against the equations, time travel, every kind of pipeline, mistakes."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from PIL import Image

from cs_models.cli import evaluate as evaluation
from cs_models.errors import UserError
from cs_models.metrics import psnr
from cs_models.networks.diffusion.ddnm import DDNM, DiffusionModel, ExactData, NoisyData, travel
from cs_models.operators import BlockOperator, MeasurementOperator, make_operator
from cs_models.operators.canvas import Canvas
from cs_models.operators.matrices import gaussian_matrix
from cs_models.solvers.linear import PseudoInverse

OPERATORS = {
    "block": lambda size: make_operator("block:8", 0.3, size),
    "plain Gaussian blocks": lambda size: BlockOperator(gaussian_matrix(20, 64, 3) / 8, size),
    "structured": lambda size: make_operator("structured:8", 0.3, size),
    "column": lambda size: make_operator("column", 0.3, size),
    "pixel": lambda size: make_operator("pixel", 0.3, size),
    "fourier": lambda size: make_operator("fourier", 0.3, size),
}


def residual(x: torch.Tensor, y: torch.Tensor, operator: MeasurementOperator) -> float:
    return float((operator(x) - y).norm() / y.norm())


def small_unet(channels: int, outputs: int) -> UNet2DModel:
    return UNet2DModel(
        16, channels, outputs, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, add_attention=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_exact_consistency(name: str, dtype: torch.dtype, tolerance: float, tiny_ddpm: Path) -> None:
    operator = OPERATORS[name]((20, 19)).to(dtype)
    y = operator(torch.rand(2, 1, 20, 19, dtype=dtype))
    solution = DDNM(model=str(tiny_ddpm), steps=3).solve(y, operator)
    assert solution.x.shape == (2, 1, 20, 19)
    assert residual(solution.x, y, operator) < tolerance
    assert solution.iterations.tolist() == [3, 3]
    assert solution.converged.all()
    # What was not measured comes from the model, not from the pseudo-inverse.
    assert residual(operator.pinv(y), solution.x, torch.nn.Identity()) > 0.1


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_from_one_step_to_a_thousand(spacing: str, tiny_ddpm: Path) -> None:
    solver = DDNM(model=str(tiny_ddpm), spacing=spacing)
    assert solver.timesteps()[:2] + solver.timesteps()[-1:] == {
        "leading": [990, 980, 0], "trailing": [999, 989, 9],
    }[spacing]  # fmt: skip
    assert DDNM(model=str(tiny_ddpm), steps=1000, spacing=spacing).timesteps() == list(reversed(range(1000)))
    operator = make_operator("pixel", 0.5, (8, 8))
    y = operator(torch.rand(1, 1, 8, 8))
    single = DDNM(model=str(tiny_ddpm), steps=1, spacing=spacing).reconstruct(y, operator)
    assert residual(single, y, operator) < 1e-5


def test_the_exact_step_is_the_papers(tiny_ddpm: Path) -> None:
    """The whole sampling again, written with a dense pseudo-inverse and images in [-1, 1]."""
    operator = OPERATORS["plain Gaussian blocks"]((16, 16)).double()
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    solver = DDNM(model=str(tiny_ddpm), steps=4, eta=0.6, seed=3)
    result = solver.reconstruct(operator(image), operator)

    a = operator(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16)).flatten(1).T
    inverse, measured = torch.linalg.pinv(a), a @ (2 * image - 1).flatten()
    model, generator = DiffusionModel(str(tiny_ddpm)), torch.Generator().manual_seed(3)
    bars = [*DDPMScheduler().alphas_cumprod[[750, 500, 250, 0]].tolist(), 1.0]
    x = torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for t, bar, next_bar in zip([750, 500, 250, 0], bars, bars[1:], strict=False):
            noise = model(x, t)
            clean = ((x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)).flatten()
            clean = inverse @ measured + clean - inverse @ (a @ clean)
            fresh = torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.float64)
            mixed = 0.6 * fresh + 0.8 * noise
            x = math.sqrt(next_bar) * clean.view_as(x) + math.sqrt(1 - next_bar) * mixed
    torch.testing.assert_close(result, (x + 1) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha_bar", [0.2, 0.9, 0.999])
def test_the_noisy_step_is_the_papers(alpha_bar: float) -> None:
    """Against the singular value decomposition of the dense matrix, one coordinate after the other."""
    size, sigma, eta = (8, 12), 0.1, 0.7
    operator = BlockOperator(gaussian_matrix(6, 16, 1), size).double()
    clean, noise, fresh = torch.randn(3, 1, 1, *size, dtype=torch.float64)
    y = operator(torch.randn_like(clean))
    result = NoisyData(y, Canvas(operator, size), sigma).step(clean, noise, fresh, alpha_bar, eta)

    a = operator(torch.eye(96, dtype=torch.float64).view(96, 1, *size)).flatten(1).T
    u, s, vt = torch.linalg.svd(a, full_matrices=True)
    b, c = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    x0, e, z = (vt @ image.flatten() for image in (clean, noise, fresh))
    target = u.T @ y.flatten()
    expected = b * x0 + c * eta * z + c * math.sqrt(1 - eta**2) * e
    for i, value in enumerate(s):
        if c >= b * sigma / value:
            weight, spread = 1.0, math.sqrt(c**2 - b**2 * sigma**2 / value**2)
        else:
            weight, spread = value * c * math.sqrt(1 - eta**2) / (b * sigma), c * eta
        expected[i] = b * (x0[i] - weight * (x0[i] - target[i] / value)) + spread * z[i]
    torch.testing.assert_close(result.flatten(), vt.T @ expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_without_noise_the_noisy_step_is_consistent_too(name: str) -> None:
    """With vanishing noise both steps move the measured part of the image to the same place."""
    operator = OPERATORS[name]((16, 16)).double()
    clean, noise = torch.randn(2, 1, 1, 16, 16, dtype=torch.float64)
    y, nothing = operator(torch.randn_like(clean)), torch.zeros_like(clean)
    canvas = Canvas(operator, (16, 16))
    exact = ExactData(y, canvas).step(clean, nothing, nothing, 0.5, 0.85)
    noisy = NoisyData(y, canvas, 1e-9).step(clean, nothing, nothing, 0.5, 0.85)
    # Orthonormal rows are known to the rounding of float32 only.
    torch.testing.assert_close(noisy, exact, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(noisy, NoisyData(y, canvas, 1e-9).step(clean, noise, nothing, 0.5, 0.85))


def test_noisy_measurements(tiny_ddpm: Path) -> None:
    """The operator's own noise level chooses the step; padding for blocks and for the U-Net is cut off again."""
    operator = make_operator("block:8", 0.3, (21, 19), noise_sigma=0.05)
    y = operator.measure(torch.rand(2, 3, 21, 19), torch.Generator().manual_seed(0))
    noisy = DDNM(model=str(tiny_ddpm), steps=10).reconstruct(y, operator)
    assert noisy.shape == (2, 3, 21, 19)
    assert noisy.isfinite().all()
    assert residual(noisy, y, operator) > 1e-3
    as_exact = DDNM(model=str(tiny_ddpm), steps=10, sigma=0.0).reconstruct(y, operator)
    assert residual(as_exact, y, operator) < residual(noisy, y, operator)


def test_time_travel() -> None:
    assert list(travel(3, 1, 1)) == [(0, 1), (1, 2), (2, 3)]
    assert list(travel(3, 1, 2)) == [(0, 1), (1, 0), (0, 1), (1, 2), (2, 1), (1, 2), (2, 3)]
    # The released schedule of 6 steps, stretches of 2, gone through 3 times.
    path = list(travel(6, 2, 3))
    assert sum(after < before for before, after in path) == 2 * 2
    assert {pair for pair in path if pair[1] < pair[0]} == {(3, 1), (5, 3)}
    assert all(first[1] == second[0] for first, second in itertools.pairwise(path))
    assert path[-1] == (5, 6)


def test_time_travel_keeps_consistency_and_counts_evaluations(tiny_ddpm: Path) -> None:
    operator = make_operator("pixel", 0.5, (8, 8)).double()
    y = operator(torch.rand(1, 1, 8, 8, dtype=torch.float64))
    plain = DDNM(model=str(tiny_ddpm), steps=4).solve(y, operator)
    travelled = DDNM(model=str(tiny_ddpm), steps=4, travel_length=2, travel_repeats=2).solve(y, operator)
    assert int(travelled.iterations[0]) == 4 + 2
    assert residual(travelled.x, y, operator) < 1e-12
    assert not torch.allclose(plain.x, travelled.x)


def test_out_of_time_the_result_is_consistent(tiny_ddpm: Path) -> None:
    operator = make_operator("pixel", 0.5, (8, 8))
    y = operator(torch.rand(1, 1, 8, 8))
    solution = DDNM(model=str(tiny_ddpm), steps=1000, time_limit=1e-9).solve(y, operator)
    assert int(solution.iterations[0]) < 1000
    assert not solution.converged.any()
    assert residual(solution.x, y, operator) < 1e-5


def test_results_do_not_depend_on_the_batch_and_colours_are_channels(tiny_ddpm: Path) -> None:
    operator = make_operator("block:8", 0.3, (12, 12))
    y = operator(torch.rand(2, 3, 12, 12))
    solver = DDNM(model=str(tiny_ddpm), steps=3)
    together = solver.reconstruct(y, operator)
    for image in range(2):
        for channel in range(3):
            alone = solver.reconstruct(y[image : image + 1, channel : channel + 1], operator)
            torch.testing.assert_close(together[image, channel], alone[0, 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(solver.reconstruct(y, operator), together)
    other_seed = DDNM(model=str(tiny_ddpm), steps=3, seed=1).reconstruct(y, operator)
    assert not torch.allclose(other_seed, together)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["colour", "with variance", "flat folder", "stable diffusion"])
def test_every_kind_of_pipeline(kind: str, channels: int, tmp_path: Path) -> None:
    if kind == "stable diffusion":
        UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 8, 8, 8), attention_head_dim=2, cross_attention_dim=6,
            norm_num_groups=4, layers_per_block=1,
        ).save_pretrained(tmp_path / "unet")  # fmt: skip
        DDIMScheduler(beta_schedule="scaled_linear", beta_end=0.012).save_pretrained(tmp_path / "scheduler")
    elif kind == "flat folder":
        small_unet(3, 3).save_pretrained(tmp_path)
        DDPMScheduler().save_pretrained(tmp_path)
    elif kind == "with variance":
        small_unet(3, 6).save_pretrained(tmp_path / "unet")
        DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    else:
        DDIMPipeline(small_unet(3, 3), DDIMScheduler()).save_pretrained(tmp_path)
    operator = make_operator("block:8", 0.3, (17, 13))
    y = operator(torch.rand(1, channels, 17, 13))
    solver = DDNM(model=str(tmp_path), steps=2)
    x = solver.reconstruct(y, operator)
    assert x.shape == (1, channels, 17, 13)
    assert residual(x, y, operator) < 1e-5
    assert json.loads(json.dumps(solver.settings()))["steps"] == 2


def test_the_null_prompt_is_read(tmp_path: Path) -> None:
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), attention_head_dim=2, cross_attention_dim=6, norm_num_groups=4,
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    np.save(tmp_path / "prompt.npy", np.random.RandomState(0).randn(77, 6))
    np.save(tmp_path / "bad.npy", np.zeros((5, 6)))
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        plain = DiffusionModel(str(tmp_path))(x, 500)
        prompted = DiffusionModel(str(tmp_path), str(tmp_path / "prompt.npy"))(x, 500)
    assert not torch.allclose(plain, prompted)
    with pytest.raises(UserError, match=r"the null prompt of this U-Net is \(77, 6\)"):
        DiffusionModel(str(tmp_path), str(tmp_path / "bad.npy"))


def test_settings_follow_the_weights_and_not_the_folder(tiny_ddpm: Path, tmp_path: Path) -> None:
    ours = DDNM(model=str(tiny_ddpm)).settings()
    DDPMPipeline.from_pretrained(tiny_ddpm).save_pretrained(tmp_path / "copy")
    assert DDNM(model=str(tmp_path / "copy")).settings() == ours
    torch.manual_seed(1)
    DDPMPipeline(small_unet(1, 1), DDPMScheduler()).save_pretrained(tmp_path / "other")
    assert DDNM(model=str(tmp_path / "other")).settings() != ours


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "ddnm:model=FOLDER"),
        ({"model": "/no/such/folder"}, "/no/such/folder"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"spacing": "even"}, "spacing is even"),
        ({"travel_length": 0}, "travel_length is 0"),
        ({"sigma": -1.0}, "sigma is -1"),
        ({"null_prompt": "prompt.npy"}, "takes no prompt"),
    ],
)
def test_wrong_settings(settings: dict, message: str, tiny_ddpm: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DDNM(**({"model": str(tiny_ddpm)} | settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["prediction", "class", "json", "weights", "pickled", "channels"])
def test_wrong_pipelines(damage: str, tmp_path: Path) -> None:
    unet = small_unet(4 if damage == "channels" else 1, 1)
    scheduler = DDPMScheduler(prediction_type="v_prediction" if damage == "prediction" else "epsilon")
    unet.save_pretrained(tmp_path / "unet", safe_serialization=damage != "pickled")
    scheduler.save_pretrained(tmp_path / "scheduler")
    config = tmp_path / "unet/config.json"
    if damage == "class":
        config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    elif damage == "json":
        config.write_text("{")
    elif damage == "weights":
        weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        DDNM(model=str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_benchmark_runs_it(tiny_ddpm: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "ramp.png"
    Image.fromarray(np.linspace(0, 255, 24 * 24).reshape(24, 24).astype(np.uint8)).save(picture)
    words = ["--image", str(picture), "--ratios", "0.3", "--operator", "pixel", "--device", "cpu"]
    assert (
        evaluation.main(["--methods", f"ddnm:model={tiny_ddpm}:steps=2", *words, "--out", str(tmp_path / "out")]) == 0
    )
    assert "ddnm" in (tmp_path / "out/per_image.csv").read_text()
    capsys.readouterr()
    assert evaluation.main(["--methods", "ddnm", *words, "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ddnm:model=FOLDER" in error


@pytest.mark.slow
def test_a_trained_model_fills_in_what_was_not_measured(tmp_path: Path) -> None:
    """A U-Net trained here on smooth waves, saved as a pipeline and loaded back, beats the pseudo-inverse by far."""
    generator = torch.Generator().manual_seed(0)

    def waves(count: int) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        angle, phase = 2 * math.pi * torch.rand(2, count, 1, 1, generator=generator)
        return torch.sin(0.4 * (rows * angle.cos() + columns * angle.sin()) + phase)[:, None]

    unet, scheduler = small_unet(1, 1), DDPMScheduler()
    optimizer = torch.optim.Adam(unet.parameters(), 4e-3)
    for _ in range(120):
        x, t = waves(16), torch.randint(1000, (16,), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        loss = (unet(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)

    operator = make_operator("pixel", 0.3, (16, 16))
    x = (waves(8) + 1) / 2
    y = operator(x)
    ours, plain = (
        psnr(method.reconstruct(y, operator).clamp(0, 1), x).mean()
        for method in (DDNM(model=str(tmp_path), steps=50), PseudoInverse())
    )
    assert ours > plain + 5
