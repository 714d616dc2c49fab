"""A user's own matrix: any scale, any rank, any rows give what an orthonormal matrix of the same row space gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.metrics import psnr
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net_pp import ISTANetPPConfig, ISTANetPPModule
from cs_models.operators import (
    BlockOperator,
    ColumnOperator,
    MatrixOperator,
    MeasurementOperator,
    StructuredOperator,
    make_operator,
)
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows, unit_norm_columns
from cs_models.operators.whitening import as_published, whitening, with_orthonormal_rows
from cs_models.reconstruction import Reconstructor
from cs_models.solvers.ista import FISTA, ISTA, WeightedL1
from cs_models.solvers.l1 import L1Solver
from cs_models.solvers.linear import LinearEstimate, PseudoInverse
from cs_models.solvers.owlqn import OWLQN
from cs_models.zoo.methods import METHODS, build_method

SIZE = (28, 21)  # blocks of 8 are cut by the border
ROWS, N = 24, 64
SOLVERS = sorted(set(METHODS) - {"backprojection", "ddnm"})
NETWORKS: dict[str, Reconstructor] = {
    "coast": COASTModule(COASTConfig(layers=2, features=4)).eval(),
    "ista_net_pp": ISTANetPPModule(ISTANetPPConfig(layers=2, features=4)).eval(),
}


def gaussian(rows: int = ROWS, n: int = N, seed: int = 0) -> Tensor:
    return gaussian_matrix(rows, n, seed)


def bits(rows: int = ROWS, n: int = N) -> Tensor:
    return (gaussian(rows, n, 2) > 0).double()


# Each with an orthonormal matrix that spans the same.
MATRICES: dict[str, tuple[Tensor, Tensor]] = {
    "Gaussian": (gaussian(), orthonormal_rows(gaussian())),
    "signs": (gaussian().sign(), orthonormal_rows(gaussian().sign())),
    "bits of a single-pixel camera": (bits(), orthonormal_rows(bits())),
    "small": (1e-3 * orthonormal_rows(gaussian()), orthonormal_rows(gaussian())),
    "large": (100 * gaussian(), orthonormal_rows(gaussian())),
    "repeated rows": (torch.cat([gaussian(), 2 * gaussian()[:10]]), orthonormal_rows(gaussian())),
    "a row of zeros": (torch.cat([gaussian(), torch.zeros(1, N)]), orthonormal_rows(gaussian())),
    "rows of different scale": (gaussian() * torch.logspace(-2, 1, ROWS)[:, None], orthonormal_rows(gaussian())),
    "half the rank": (
        gaussian(ROWS, ROWS // 2, 4) @ gaussian()[: ROWS // 2],
        orthonormal_rows(gaussian()[: ROWS // 2]),
    ),
}


def scene(size: tuple[int, int] = SIZE) -> Tensor:
    """Shading with a bright rectangle, ``(1, 1, H, W)``."""
    height, width = size
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    picture = 0.3 + 0.2 * torch.sin(3 * rows) * torch.cos(2 * columns)
    picture[height // 4 : height // 2, width // 3 : 2 * width // 3] += 0.4
    return picture[None, None]


def method_named(name: str) -> Reconstructor:
    short = {
        "clomp": "clomp:epochs=40",
        "clomp_warm": "clomp_warm:epochs=40",
        "pnp": "pnp:iterations=20",
        "tv": "tv:iterations=60",
    }
    return NETWORKS[name] if name in NETWORKS else build_method(short.get(name, name), 0.4)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("name", [*SOLVERS, *NETWORKS])
def test_only_the_row_space_counts(name: str, kind: str) -> None:
    method, x = method_named(name), scene()
    estimates = []
    for matrix in MATRICES[kind]:
        operator = BlockOperator(matrix.float(), SIZE)
        estimates.append(method.reconstruct(operator(x), operator))
    ours, orthonormal = (psnr(estimate, x).item() for estimate in estimates)
    assert ours == pytest.approx(orthonormal, abs=0.2)


@pytest.mark.parametrize("name", ["fista", "tv", "pnp", "niht", "clomp_warm", "linear", "coast"])
def test_only_the_row_space_counts_in_structured_sampling(name: str) -> None:
    method, x = method_named(name), scene()
    values = []
    for matrix in MATRICES["bits of a single-pixel camera"]:
        operator = StructuredOperator(matrix.float(), SIZE)
        values.append(psnr(method.reconstruct(operator(x), operator), x).item())
    assert values[0] == pytest.approx(values[1], abs=0.2)


@pytest.mark.parametrize("factor", [0.001, 100.0])
@pytest.mark.parametrize("matrix", ["unit-norm columns", "Gaussian", "bits"])
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "linear"])
def test_the_scale_of_a_column_matrix_does_not_count(name: str, matrix: str, factor: float) -> None:
    drawn = {
        "unit-norm columns": unit_norm_columns(gaussian(10, 28)),
        "Gaussian": gaussian(10, 28),
        "bits": bits(10, 28),
    }
    method, x = method_named(name), scene()
    values = []
    for scale in (1.0, factor):
        operator = ColumnOperator((scale * drawn[matrix]).float(), SIZE)
        values.append(psnr(method.reconstruct(operator(x), operator), x).item())
    # Adam makes much of roundings.
    assert values[0] == pytest.approx(values[1], abs=0.5 if name.startswith("clomp") else 0.2)


@pytest.mark.parametrize("words", ["block:8", "structured:8", "column", "pixel", "fourier", "radon"])
def test_what_is_drawn_here_is_taken_as_it_is(words: str) -> None:
    operator = make_operator(words, 0.3, SIZE)
    y = operator(scene())
    assert as_published(y, operator) == (y, operator)
    if words != "column":
        assert with_orthonormal_rows(y, operator) == (y, operator)


def test_rows_are_factored_once_for_all_sizes() -> None:
    operator = BlockOperator(gaussian().float(), SIZE)
    for size in ((16, 16), (33, 9)):
        other = operator.resized(*size)
        assert other.rows.factors(other.matrix) is operator.rows.factors(operator.matrix)
    assert whitening(operator) is whitening(operator)


def hadamard(rows: int, n: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix[torch.randperm(n, generator=torch.Generator().manual_seed(0))][:rows] / math.sqrt(n)


@pytest.mark.parametrize("kind", ["bits", "Hadamard with its constant row"])
def test_networks_see_the_brightness_as_from_random_rows(kind: str) -> None:
    matrix = bits() if kind == "bits" else torch.cat([torch.full((1, N), N**-0.5), hadamard(ROWS, N)])
    operator = BlockOperator(matrix.float(), SIZE)
    x = scene()
    with torch.autocast("cpu", torch.bfloat16):
        y, ready = NETWORKS["coast"].prepared(operator(x), operator)
    assert isinstance(ready, BlockOperator)
    torch.testing.assert_close(ready(x), y, atol=1e-4, rtol=1e-4)
    share = ready.matrix.sum(1).square().sum().item() / N
    assert share == pytest.approx(ready.matrix.shape[0] / N, rel=1e-3)
    # Nothing is lost: both determine the same image of least norm.
    torch.testing.assert_close(ready.pinv(y), operator.pinv(operator(x)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["ista_net_pp", "r_coast"])
def test_shipped_networks_take_the_bits_of_a_single_pixel_camera(name: str) -> None:
    x = scene((66, 66))
    values = []
    for matrix in (gaussian(109, 1089), bits(109, 1089)):
        operator = make_operator(matrix, 0.1, (66, 66))
        values.append(psnr(build_method(name, 0.1).reconstruct(operator(x), operator).clamp(0, 1), x).item())
    assert values[1] > min(values[0], 36) - 2


# Noise


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


@pytest.mark.parametrize("words", ["block:8", "structured:8", "pixel", "fourier", "a Gaussian matrix"])
@pytest.mark.parametrize("sigma", [0.2])
def test_the_linear_estimate_knows_the_noise(words: str, sigma: float) -> None:
    x = scene((32, 32))
    spec = gaussian(ROWS, N) if words == "a Gaussian matrix" else words
    sigma = sigma * 8 if words == "a Gaussian matrix" else sigma
    operator = make_operator(spec, ROWS / N, (32, 32), noise_sigma=sigma)
    y = operator.measure(x, torch.Generator().manual_seed(0))
    aware = psnr(LinearEstimate().reconstruct(y, operator), x)
    operator.noise_sigma = 0.0
    assert aware > psnr(LinearEstimate().reconstruct(y, operator), x) + 2


@pytest.mark.parametrize("words", ["block:8", "column", "pixel", "fourier", "a Gaussian matrix"])
@pytest.mark.parametrize("sigma", [0.04, 0.2])
@pytest.mark.parametrize("name", ["tv", "pnp"])
def test_the_residual_is_what_the_noise_is(name: str, words: str, sigma: float) -> None:
    x = scene((48, 48))
    if words == "a Gaussian matrix":
        sigma = sigma * 8
    operator = make_operator(gaussian() if words.startswith("a ") else words, ROWS / N, (48, 48))
    operator.noise_sigma = sigma
    y = operator.measure(x, torch.Generator().manual_seed(0))
    residual = operator(method_named(name).reconstruct(y, operator)) - y
    components = 2 if residual.is_complex() else 1
    level = residual.abs().square().mean().sqrt().item() / (sigma * math.sqrt(components))
    assert 0.75 < level < 1.15


@pytest.mark.parametrize("kind", [BlockOperator, StructuredOperator])
def test_the_linear_estimate_weighs_every_measurement_by_its_own_noise(kind: type[MatrixOperator]) -> None:
    """An orthonormal mix of measurements is the same measurement, with white noise as before."""
    x, matrix = scene((16, 16)).double(), orthonormal_rows(gaussian()) * torch.linspace(0.3, 2, ROWS)[:, None]
    mix = orthonormal_rows(gaussian(ROWS, ROWS, 9))
    plain, mixed = (kind(rows, (16, 16), noise_sigma=0.1) for rows in (matrix, mix @ matrix))
    y = plain.measure(x, torch.Generator().manual_seed(0))
    expected = LinearEstimate().reconstruct(y, plain)
    torch.testing.assert_close(LinearEstimate().reconstruct(y @ mix.T, mixed), expected, atol=2e-3, rtol=0)


# Converged means near the minimum


@pytest.mark.parametrize("method", [FISTA, ISTA, OWLQN, WeightedL1])
@pytest.mark.parametrize(
    "kind", ["Gaussian", "signs", "bits of a single-pixel camera", "half the rank", "column", "radon"]
)
def test_converged_is_within_a_hundredth_of_the_minimum(method: type[L1Solver], kind: str) -> None:
    operator: MeasurementOperator
    if kind in ("column", "radon"):
        operator = make_operator(kind, 0.3, SIZE)
    else:
        operator = BlockOperator(MATRICES[kind][0].float(), SIZE)
    y = operator(scene())
    solver = method(iterations=1500)
    solution = solver.solve(y, operator)
    assert solution.converged is not None
    if not solution.converged.all():
        assert kind == "column", "ill-conditioned: ISTA and OWL-QN are slow there, and say so"
        assert method in (ISTA, OWLQN)
        return
    reference = WeightedL1 if method is WeightedL1 else FISTA
    best = reference(iterations=800, tolerance=0).reconstruct(y, operator)
    assert solver.objective(solution.x, y, operator).item() < 1.01 * solver.objective(best, y, operator).item()


# A matrix that measures nothing


@pytest.mark.parametrize("name", ["linear", "tv", "fista", "omp", "iht", "clomp", "coast"])
def test_a_matrix_of_zeros_is_refused(name: str) -> None:
    operator = BlockOperator(torch.zeros(ROWS, N), SIZE)
    with pytest.raises(UserError, match="only zeros"):
        method_named(name).reconstruct(operator(scene()), operator)
    with pytest.raises(UserError, match="only zeros"):
        make_operator(torch.zeros(ROWS, N), ROWS / N, SIZE)


def test_residuals_are_those_of_the_users_matrix() -> None:
    operator = BlockOperator(MATRICES["bits of a single-pixel camera"][0].float(), SIZE)
    y = operator(scene())
    solution = method_named("fista").solve(y, operator)
    expected = ((operator(solution.x) - y).norm() / y.norm()).item()
    assert solution.residual is not None
    assert solution.residual.item() == pytest.approx(expected, rel=1e-4)
    assert not math.isclose(expected, 0)
