"""A user's own matrix: any scale, any rank, any rows give what an orthonormal matrix of the same row space gives."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

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
    MeasurementOperator,
    StructuredOperator,
    adjoint_error,
    make_operator,
)
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows, unit_norm_columns
from cs_models.operators.scaled import ScaledOperator, norm_by_power
from cs_models.operators.whitening import as_published, whitening, with_orthonormal_rows
from cs_models.reconstruction import Reconstructor
from cs_models.solvers.ista import FISTA, ISTA, WeightedL1
from cs_models.solvers.l1 import L1Solver
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


# Differences show long before a method has converged; OWL-QN's way alone depends on roundings.
SHORT = {
    "clomp": "clomp:epochs=40",
    "clomp_warm": "clomp_warm:epochs=40",
    "pnp": "pnp:iterations=20",
    "tv": "tv:iterations=60",
}
SHORT |= {name: f"{name}:iterations=50" for name in ("fista", "iht", "ista", "lasso", "niht", "weighted_l1")}


def method_named(name: str) -> Reconstructor:
    return NETWORKS[name] if name in NETWORKS else build_method(SHORT.get(name, name), 0.4)


def quality(name: str, operator: MeasurementOperator) -> float:
    """PSNR of a method on the scene, without noise."""
    x = scene()
    return psnr(method_named(name).reconstruct(operator(x), operator), x).item()


@cache
def orthonormal_quality(name: str, values: bytes) -> float:
    """The same with orthonormal rows, which several matrices have in common."""
    matrix = torch.frombuffer(bytearray(values), dtype=torch.float32).view(-1, N)
    return quality(name, BlockOperator(matrix, SIZE))


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("name", [*SOLVERS, *NETWORKS])
def test_only_the_row_space_counts(name: str, kind: str) -> None:
    ours, orthonormal = (matrix.float() for matrix in MATRICES[kind])
    expected = orthonormal_quality(name, orthonormal.numpy().tobytes())
    assert quality(name, BlockOperator(ours, SIZE)) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("name", ["fista", "tv", "pnp", "niht", "clomp_warm", "linear", "coast"])
def test_only_the_row_space_counts_in_structured_sampling(name: str) -> None:
    bits_of_camera = MATRICES["bits of a single-pixel camera"]
    ours, orthonormal = (quality(name, StructuredOperator(matrix.float(), SIZE)) for matrix in bits_of_camera)
    assert ours == pytest.approx(orthonormal, abs=0.2)


COLUMNS = {
    "unit-norm columns": unit_norm_columns(gaussian(10, 28)),
    "Gaussian": gaussian(10, 28),
    "bits": bits(10, 28),
}


@cache
def column_quality(name: str, matrix: str, scale: float) -> float:
    return quality(name, ColumnOperator((scale * COLUMNS[matrix]).float(), SIZE))


@pytest.mark.parametrize("factor", [0.001, 100.0])
@pytest.mark.parametrize("matrix", COLUMNS)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "linear"])
def test_the_scale_of_a_column_matrix_does_not_count(name: str, matrix: str, factor: float) -> None:
    # Adam makes much of roundings.
    expected = pytest.approx(column_quality(name, matrix, 1.0), abs=0.5 if name.startswith("clomp") else 0.2)
    assert column_quality(name, matrix, factor) == expected


class Blur(MeasurementOperator):
    """A user's own operator, without a matrix or any other tensor: a blurred image, times a factor."""

    def __init__(self, image_size: tuple[int, int], factor: float = 1.0) -> None:
        super().__init__(image_size, 1.0)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * (x / 2 + x.roll(1, -1) / 4 + x.roll(-1, -1) / 4)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def pinv(self, y: Tensor) -> Tensor:
        raise NotImplementedError  # no method of these tests needs one

    def resized(self, height: int, width: int) -> Blur:
        return Blur((height, width), self.factor)

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "blur", "factor": self.factor}


@cache
def blur_quality(name: str, factor: float) -> float:
    return quality(name, Blur(SIZE, factor))


@pytest.mark.parametrize("factor", [0.001, 255.0])
@pytest.mark.parametrize("name", [*sorted(set(SOLVERS) - {"omp", "pinv", "stomp"}), "coast"])
def test_the_scale_of_an_operator_without_a_matrix_does_not_count(name: str, factor: float) -> None:
    # Adam makes much of roundings; IRLS solves its equations to a tolerance.
    expected = pytest.approx(blur_quality(name, 1.0), abs=0.5 if name.startswith(("clomp", "irls")) else 0.2)
    assert blur_quality(name, factor) == expected


@pytest.mark.parametrize("words", ["pixel", "radial", "cartesian", "transform2d", "radon"])
def test_operators_of_ours_without_a_matrix_have_one_scale(words: str) -> None:
    operator = make_operator(words, 0.3, (48, 40))
    assert operator.unit_norm
    assert norm_by_power(operator) == pytest.approx(1, abs=0.1)
    assert with_orthonormal_rows(operator(scene((48, 40))), operator)[1] is operator


def test_an_operator_at_unit_norm_obeys_the_laws() -> None:
    operator = make_operator("radial", 0.4, (10, 12), noise_sigma=0.1).double()
    scaled = ScaledOperator(operator, 7.0)
    x = torch.rand(2, 1, 10, 12).double()
    y = scaled(x)
    assert adjoint_error(scaled, x, torch.randn_like(y)) < 1e-9
    torch.testing.assert_close(scaled(scaled.pinv(y)), y)
    assert scaled.noise_sigma == pytest.approx(0.7)
    assert scaled.measured_ratio == operator.measured_ratio
    assert scaled.resized(12, 12).image_size == (12, 12)
    assert Blur((8, 9)).measured_ratio == 1


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


# Converged means near the minimum


@cache
def measured(kind: str) -> tuple[MeasurementOperator, Tensor]:
    if kind in MATRICES:
        operator: MeasurementOperator = BlockOperator(MATRICES[kind][0].float(), SIZE)
    else:
        operator = make_operator(kind, 0.3, SIZE)
    return operator, operator(scene())


@cache
def least_objective(method: type[L1Solver], kind: str) -> float:
    """F near its minimum: nearer than a thousandth of what the test allows."""
    operator, y = measured(kind)
    solver = method(iterations=800, tolerance=1e-7)
    return solver.objective(solver.reconstruct(y, operator), y, operator).item()


# Every other matrix of blocks becomes one with the rows of these two.
@pytest.mark.parametrize("method", [FISTA, ISTA, OWLQN, WeightedL1])
@pytest.mark.parametrize("kind", ["Gaussian", "bits of a single-pixel camera", "column", "radon"])
def test_converged_is_within_a_hundredth_of_the_minimum(method: type[L1Solver], kind: str) -> None:
    operator, y = measured(kind)
    slow = kind == "column" and method in (ISTA, OWLQN)  # ill-conditioned, and they say so
    solver = method(iterations=300 if slow else 1500)
    solution = solver.solve(y, operator)
    assert solution.converged is not None
    if not solution.converged.all():
        assert slow
        return
    least = least_objective(WeightedL1 if method is WeightedL1 else FISTA, kind)
    assert solver.objective(solution.x, y, operator).item() < 1.01 * least


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
