"""Noise that an operator knows of: what becomes of it, and what each method makes of it."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from cs_models.metrics import psnr
from cs_models.operators import (
    BlockOperator,
    MatrixOperator,
    MeasurementOperator,
    StructuredOperator,
    Transform2dOperator,
    make_operator,
)
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows
from cs_models.operators.whitening import whitening
from cs_models.solvers.base import column_norm
from cs_models.solvers.l1 import L1Solver
from cs_models.solvers.linear import LinearEstimate, PseudoInverse
from cs_models.zoo.methods import build_method
from tests.test_own_matrix import MATRICES, SIZE, method_named, scene

ROWS, N = 24, 64
# What knowing the noise gains at least, in dB at a standard deviation of 0.2, on the matrix of blocks below.
GAINS = {
    "linear": 2, "tv": 2, "pnp": 2, "omp": 2, "stomp": 2, "sp": 1, "cosamp": 1, "iht": 1, "niht": 1, "ista": 1.5,
    "fista": 2, "lasso": 2, "owlqn": 2, "weighted_l1": 2,
}  # fmt: skip
OPERATORS = ["block:8", "structured:8", "column", "pixel", "fourier", "transform2d", "a Gaussian matrix"]


def gaussian(rows: int = ROWS, n: int = N, seed: int = 0) -> Tensor:
    return gaussian_matrix(rows, n, seed)


@cache
def noisy(words: str, sigma: float, size: tuple[int, int] = (32, 32)) -> tuple[MeasurementOperator, Tensor]:
    """An operator that knows its noise, and noisy measurements of the scene."""
    own = words == "a Gaussian matrix"
    spec = gaussian() if own else words
    # The rows of the user's matrix are eight times as long as those of an orthonormal one.
    operator = make_operator(spec, ROWS / N, size, noise_sigma=8 * sigma if own else sigma)
    return operator, operator.measure(scene(size), torch.Generator().manual_seed(0))


def level(estimate: Tensor, operator: MeasurementOperator, y: Tensor) -> float:
    """The residual as a share of the noise."""
    residual = operator(estimate) - y
    components = 2 if residual.is_complex() else 1
    return residual.abs().square().mean().sqrt().item() / (operator.noise_sigma * math.sqrt(components))


def test_noise_becomes_coloured_and_its_level_is_known() -> None:
    operator = BlockOperator(gaussian().float(), (8, 8), noise_sigma=0.1)
    same = whitening(operator)
    noise = same(0.1 * torch.randn(20_000, 1, 1, ROWS)).std(0).flatten()
    torch.testing.assert_close(noise.double(), same.noise, rtol=0.03, atol=0)
    assert same.operator.noise_sigma == pytest.approx(same.noise.square().mean().sqrt().item())


def test_directions_that_hold_nothing_but_noise_are_left_out() -> None:
    matrix = orthonormal_rows(gaussian()) * torch.logspace(-4, 0, ROWS)[:, None]
    operator = BlockOperator(matrix.float(), SIZE, noise_sigma=0.02)
    same = whitening(operator)
    assert same.operator.matrix.shape[0] == int((0.02 / torch.logspace(-4, 0, ROWS) <= 0.5).sum())
    x = scene()
    y = operator.measure(x, torch.Generator().manual_seed(0))
    assert psnr(method_named("tv").reconstruct(y, operator), x) > 15


@pytest.mark.parametrize("kind", ["Gaussian", "repeated rows", "half the rank"])
def test_the_pseudo_inverse_of_a_deficient_matrix_does_not_amplify_noise(kind: str) -> None:
    matrix = MATRICES[kind][0].float()
    smallest = torch.linalg.svdvals(matrix.double())
    smallest = smallest[smallest > 1e-5 * smallest[0]][-1]
    for size in ((8, 8), SIZE):
        operator = BlockOperator(matrix, size)
        noise = torch.randn(operator(torch.zeros(1, 1, *size)).shape)
        assert PseudoInverse().reconstruct(noise, operator).abs().max() < 10 / smallest


@pytest.mark.parametrize("name", GAINS)
def test_who_knows_the_noise_is_better_off(name: str) -> None:
    operator, y = noisy("a Gaussian matrix", 0.2)
    method, x = method_named(name), scene((32, 32))
    aware, blind = (psnr(method.reconstruct(y, one), x).item() for one in (operator, operator.with_noise(0.0)))
    assert aware > blind + GAINS[name]


@pytest.mark.parametrize("words", ["block:8", "structured:8", "pixel", "fourier"])
def test_the_linear_estimate_knows_the_noise_of_any_operator(words: str) -> None:
    operator, y = noisy(words, 0.2, (16, 16))
    method, x = LinearEstimate(), scene((16, 16))
    aware, blind = (psnr(method.reconstruct(y, one), x).item() for one in (operator, operator.with_noise(0.0)))
    assert aware > blind + 1.5


@pytest.mark.parametrize("words", ["fourier", "radial"])
def test_noise_that_explains_no_image_costs_the_linear_estimate_nothing(words: str) -> None:
    """The noise on a coefficient is not the conjugate of that on the conjugate coefficient."""
    operator = make_operator(words, 0.3, (32, 32), noise_sigma=0.2)
    y = operator.measure(scene((32, 32)), torch.Generator().manual_seed(0))
    calls: list[object] = []
    with operator.register_forward_hook(lambda *_: calls.append(None)):
        estimate = LinearEstimate().reconstruct(y, operator)
    assert len(calls) < 100  # of thousands
    torch.testing.assert_close(LinearEstimate().reconstruct(operator(operator.adjoint(y)), operator), estimate)


@pytest.mark.parametrize("words", OPERATORS)
@pytest.mark.parametrize("sigma", [0.04, 0.2])
@pytest.mark.parametrize("name", ["tv", "pnp", "fista", "weighted_l1"])
def test_the_residual_is_what_the_noise_is(name: str, words: str, sigma: float) -> None:
    operator, y = noisy(words, sigma)
    assert 0.7 < level(method_named(name).reconstruct(y, operator), operator, y) < 1.2


@pytest.mark.parametrize("words", ["block:8", "column", "pixel"])
@pytest.mark.parametrize("name", ["omp", "stomp", "sp", "cosamp", "iht", "niht"])
def test_greedy_solvers_keep_no_more_than_the_noise_allows(name: str, words: str) -> None:
    if words == "pixel" and name in ("omp", "stomp"):
        pytest.skip("they need the atoms of short signals")
    operator, y = noisy(words, 0.2)
    assert 0.6 < level(method_named(name).reconstruct(y, operator), operator, y) < 1.3


@pytest.mark.parametrize("name", ["iht", "stomp"])
def test_the_released_code_knew_no_noise(name: str) -> None:
    operator, y = noisy("column", 0.2)
    method = build_method(f"{name}:released=true", ROWS / N)
    assert torch.equal(method.reconstruct(y, operator), method.reconstruct(y, operator.with_noise(0.0)))


@pytest.mark.parametrize("name", ["ista", "fista", "lasso", "owlqn", "weighted_l1", "tv"])
def test_a_weight_that_is_given_stays(name: str) -> None:
    operator, y = noisy("block:8", 0.2)
    method, given = (build_method(words, ROWS / N) for words in (name, f"{name}:weight=7"))
    assert method.weight_for(operator, y) > method.weight_for(operator.with_noise(0.0), y)
    assert given.weight_for(operator, y) == 7
    if isinstance(method, L1Solver):
        assert method.weight_for(operator.with_noise(0.0), y) == (15 if name == "weighted_l1" else 5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(8, 8), (40, 40)])
def test_the_norm_of_columns_is_seen_whatever_the_draw(seed: int, size: tuple[int, int]) -> None:
    operator = Transform2dOperator(size, 0.3, seed)
    assert column_norm(operator, torch.zeros(1)) == pytest.approx(math.sqrt(0.3), rel=0.1)


@pytest.mark.parametrize("kind", [BlockOperator, StructuredOperator])
def test_the_linear_estimate_weighs_every_measurement_by_its_own_noise(kind: type[MatrixOperator]) -> None:
    """An orthonormal mix of measurements is the same measurement, with white noise as before."""
    x, matrix = scene((16, 16)).double(), orthonormal_rows(gaussian()) * torch.linspace(0.3, 2, ROWS)[:, None]
    mix = orthonormal_rows(gaussian(ROWS, ROWS, 9))
    plain, mixed = (kind(rows, (16, 16), noise_sigma=0.1) for rows in (matrix, mix @ matrix))
    y = plain.measure(x, torch.Generator().manual_seed(0))
    expected = LinearEstimate().reconstruct(y, plain)
    torch.testing.assert_close(LinearEstimate().reconstruct(y @ mix.T, mixed), expected, atol=2e-3, rtol=0)
