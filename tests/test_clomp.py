"""Coefficients learning: the released figures, the default, its parts, priors and edges."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators import make_operator
from cs_models.solvers.clomp import CLOMP, INJECTIONS, CoefficientsLearning, WarmCLOMP
from cs_models.solvers.clomp_branches import omp_injection
from cs_models.solvers.priors import Prior, differentiated, local_variation, total_variation
from cs_models.solvers.tikhonov import smooth_image
from datamodules.images import read_image


def photograph(size: int = 48) -> Tensor:
    """A smooth scene with an edge, ``(1, 1, size, size)`` in [0, 1]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    scene = 0.3 + 0.3 * torch.sin(5 * rows) * torch.cos(3 * columns) + 0.3 * (rows + 0.5 * columns > 0.8)
    return scene.clamp(0, 1)[None, None]


def psnr(estimate: Tensor, x: Tensor) -> float:
    return -10 * math.log10(float((estimate.clamp(0, 1) - x).square().mean()))


# Priors


def squared_differences(x: Tensor) -> Tensor:
    return x.diff(dim=-1).square().mean((-2, -1)) + x.diff(dim=-2).square().mean((-2, -1))


def window_deviations(x: Tensor) -> Tensor:
    windows = F.unfold(x.flatten(0, 1)[:, None], 3, stride=2)
    return windows.std(dim=1).mean(-1).view(x.shape[:2])


@pytest.mark.parametrize(
    ("prior", "definition"), [(total_variation, squared_differences), (local_variation, window_deviations)]
)
@pytest.mark.parametrize("size", [(3, 3), (8, 13), (17, 10)])
def test_prior_and_gradient_equal_the_definition(
    prior: Prior, definition: Callable[[Tensor], Tensor], size: tuple[int, int]
) -> None:
    x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    value, gradient = prior(x.detach())
    expected = definition(x)
    assert torch.allclose(value, expected)
    assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("prior", [total_variation, local_variation])
def test_priors_of_flat_and_tiny_images_are_finite(prior: Prior) -> None:
    for x in (torch.full((1, 1, 9, 9), 0.3), torch.rand(1, 1, 2, 9), torch.rand(1, 1, 20, 1)):
        value, gradient = prior(x)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        assert gradient.shape == x.shape


def test_own_prior_counts_once_for_all_channels() -> None:
    x = torch.rand(2, 3, 5, 5)
    value, gradient = differentiated(lambda images: images.square().sum((1, 2, 3)))(x)
    assert torch.allclose(value.sum(1), x.square().sum((1, 2, 3)))
    assert torch.allclose(gradient, 2 * x)


# Parts


@pytest.mark.parametrize("mask", ["maximum", "softmax"])
def test_omp_injection_selects_the_strongest_and_never_forgets(mask: str) -> None:
    inject = omp_injection(0.7, mask)  # type: ignore[arg-type]
    correlation = torch.tensor([[1.0, -0.9, 0.2], [0.0, 0.0, 0.0]])
    s = torch.zeros(2, 3)
    first = inject(correlation, s, torch.zeros(2, 3))
    assert first.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert inject(torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0]]), s, first).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_smooth_image_explains_the_measurements() -> None:
    x = photograph().double()
    operator = make_operator("block:8", 0.3, (48, 48)).double()
    y = operator(x)
    estimate = smooth_image(y, operator, 1e-4, 200)
    assert (operator(estimate) - y).norm() < 1e-2 * y.norm()
    assert psnr(estimate, x) > psnr(operator.pinv(y), x) + 3


@pytest.mark.parametrize(
    "solver",
    [
        *(CLOMP(injection=injection) for injection in INJECTIONS),
        *(CLOMP(injection=injection, structure=2, neurons=16) for injection in ("omp", "iht")),
        *(CLOMP(injection=injection, form="iterates") for injection in ("omp", "iht", "ista", "irls")),
        *(CLOMP(injection=injection, learned_weight=True) for injection in ("none", "omp")),
    ],
    ids=lambda solver: f"{solver.injection} {solver.structure} {solver.form} {solver.learned_weight}",
)
def test_branches_together_beat_the_pseudo_inverse(solver: CLOMP) -> None:
    x = photograph(32)
    operator = make_operator("column", 0.4, (32, 32))
    y = operator(x)
    assert psnr(solver.reconstruct(y, operator), x) > psnr(operator.pinv(y), x) + 3


# Whole solver


@pytest.mark.parametrize(("ratio", "ssim_released", "psnr_released"), [(0.3, 0.706, 22.74)])
@pytest.mark.slow
def test_released_mode_reproduces_the_released_figures(
    real_data: Path, ratio: float, ssim_released: float, psnr_released: float
) -> None:
    from skimage.metrics import structural_similarity

    figures = []
    for path in sorted((real_data / "Set11").iterdir()):
        pixels = torch.tensor(read_image(path)).float().squeeze()[None, None]
        x = pixels / pixels.max()
        operator = make_operator("column", ratio, (x.shape[-2], x.shape[-1]))
        estimate = CLOMP(recipe="released").reconstruct(operator(x), operator).clamp(0, 1)
        ssim = structural_similarity(x[0, 0].numpy(), estimate[0, 0].numpy(), data_range=float(x.max() - x.min()))
        figures.append((ssim, psnr(estimate, x)))
    ssim, decibels = torch.tensor(figures).mean(0).tolist()
    assert ssim == pytest.approx(ssim_released, abs=0.02)
    assert decibels == pytest.approx(psnr_released, abs=0.5)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_a_warm_start_dominates_the_paper_and_its_code(real_data: Path, ratio: float) -> None:
    pixels = torch.tensor(read_image(real_data / "BrainMRI" / "brain_test_01.png")).float()
    x = pixels.squeeze()[None, None, ::2, ::2] / 255
    operator = make_operator("column", ratio, (x.shape[-2], x.shape[-1]))
    y = operator(x)
    warm, corrected, released = (
        psnr(solver.reconstruct(y, operator), x) for solver in (WarmCLOMP(), CLOMP(), CLOMP(recipe="released"))
    )
    assert warm > max(corrected, released)


# The smooth start of structured sampling takes many conjugate gradient steps, which let rounding errors of the
# matrix products grow; there, only the random start is the same to rounding.
@pytest.mark.parametrize(
    ("spec", "solver"),
    [
        *((spec, WarmCLOMP(epochs=30)) for spec in ("column", "block:8", "pixel", "fourier")),
        *((spec, CLOMP(epochs=30)) for spec in ("column", "block:8", "structured:8")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_batch_equals_its_images_one_by_one(spec: str, solver: CoefficientsLearning) -> None:
    x = torch.cat([photograph(20), 0.3 * photograph(20).flip(-1)]).double().expand(2, 2, 20, 20)
    operator = make_operator(spec, 0.4, (20, 20)).double()
    y = operator(x)
    together = solver.reconstruct(y, operator)
    for index in range(2):
        assert torch.allclose(together[index], solver.reconstruct(y[index : index + 1], operator)[0], atol=1e-6)


@pytest.mark.parametrize("structure", [1, 2])
def test_a_caller_may_switch_gradients_off(structure: Literal[1, 2]) -> None:
    operator = make_operator("block:8", 0.4, (16, 16))
    y = operator(photograph(16))
    solver = CLOMP(structure=structure, epochs=5)
    expected = solver.reconstruct(y, operator)
    with torch.no_grad():
        assert torch.equal(solver.reconstruct(y, operator), expected)


def test_priors_act_across_block_borders() -> None:
    x = photograph()
    operator = make_operator("block:16", 0.1, (48, 48))
    estimate = WarmCLOMP().reconstruct(operator(x), operator)
    jumps = estimate.diff(dim=-1).abs().mean((0, 1, 2))
    at_borders, elsewhere = jumps[[15, 31]].mean(), jumps[[7, 23, 39]].mean()
    assert at_borders < 2.5 * elsewhere


def test_seed_decides_the_random_start() -> None:
    operator = make_operator("column", 0.3, (24, 24))
    y = operator(photograph(24))
    first, again, other = (CLOMP(seed=seed, epochs=20).reconstruct(y, operator) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def own_prior(x: Tensor) -> Tensor:
    return (x - 0.25).square().mean((1, 2, 3))


def test_own_prior_pulls_the_result() -> None:
    operator = make_operator("column", 0.1, (24, 24))
    y = operator(photograph(24))
    plain, pulled = WarmCLOMP(w_lv=0.0), WarmCLOMP(w_lv=0.0, prior=own_prior, w_prior=100.0)
    near, far = (own_prior(solver.reconstruct(y, operator)).item() for solver in (pulled, plain))
    assert near < far
    assert pulled.settings()["prior"].endswith("own_prior")


def test_one_dimensional_signals() -> None:
    x = photograph(64)[:, :, :, :1].repeat(5, 1, 1, 1)
    operator = make_operator("column", 0.5, (64, 1))
    solution = CLOMP().solve(operator(x), operator)
    assert solution.x.shape == x.shape
    assert psnr(solution.x, x) > psnr(operator.pinv(operator(x)), x) + 3


def test_signals_are_not_for_the_warm_start() -> None:
    operator = make_operator("column", 0.5, (64, 1))
    with pytest.raises(UserError, match="3x3 pixels, and this one is 64x1; use clomp"):
        WarmCLOMP().solve(torch.rand(1, 1, 1, 32), operator)


@pytest.mark.parametrize(
    "solver",
    [CLOMP(epochs=20), CLOMP(recipe="released", epochs=20), CLOMP(structure=2, epochs=20), WarmCLOMP(epochs=20)],
    ids=["corrected", "released", "structure 2", "warm"],
)
def test_black_image(solver: CoefficientsLearning) -> None:
    operator = make_operator("column", 0.3, (16, 16))
    x = torch.stack([torch.zeros(1, 16, 16), photograph(16)[0]])
    solution = solver.solve(operator(x), operator)
    assert torch.equal(solution.x[0], x[0])
    assert solution.x[1].any()
    assert solution.converged is not None
    assert solution.residual is not None
    assert solution.converged.tolist() == [True, False]
    assert solution.residual[0] == 0


def test_constant_image() -> None:
    operator = make_operator("column", 0.3, (16, 16))
    x = torch.full((1, 1, 16, 16), 0.5)
    for solver in (CLOMP(), WarmCLOMP()):
        assert (solver.reconstruct(operator(x), operator) - x).abs().mean() < 0.01


def test_one_measurement_a_signal() -> None:
    operator = make_operator("column", 0.01, (16, 16))
    assert torch.isfinite(CLOMP().reconstruct(operator(photograph(16)), operator)).all()


def test_nan_is_refused() -> None:
    operator = make_operator("column", 0.3, (16, 16))
    with pytest.raises(UserError, match="NaN"):
        CLOMP().solve(torch.full((1, 1, 16, 4), math.nan), operator)


@pytest.mark.parametrize(
    "arguments",
    [{"epochs": 0}, {"structure": 3}, {"injection": "mp"}, {"mask": "mean"}, {"neurons": 0}, {"recipe": "warm"}],
    ids=str,
)
def test_settings_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected"):
        CLOMP(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "epochs"), [({}, 90), ({"change_tolerance": 1e-7}, 82), ({"recipe": "released"}, 82)]
)
def test_a_loss_that_repeats_itself_ends_only_the_released_training(settings: dict[str, Any], epochs: int) -> None:
    operator = make_operator("column", 0.3, (48, 48))
    still = CLOMP(learning_rate=1e-20, final_learning_rate=1e-20, epochs=90, **settings)
    solution = still.solve(operator.forward(photograph()), operator)
    assert solution.iterations is not None
    assert solution.iterations.tolist() == [epochs]


def test_limits_and_settings() -> None:
    operator = make_operator("column", 0.3, (16, 16))
    y = operator(photograph(16))
    solution = CLOMP(epochs=7).solve(y, operator)
    assert solution.iterations is not None
    assert solution.iterations.tolist() == [7]
    assert torch.isfinite(CLOMP(time_limit=1e-9).reconstruct(y, operator)).all()
    assert json.loads(json.dumps(CLOMP().settings())) == CLOMP(progress=True).settings()
    assert dataclasses.replace(CLOMP(), w_tv=0.1).settings() != CLOMP().settings()
