"""Greedy and thresholding solvers: exact recovery, agreement with scikit-learn, independence of the batch, edges."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators import BlockOperator, ColumnOperator, FourierOperator, MeasurementOperator, make_operator
from cs_models.operators.matrices import gaussian_matrix, unit_norm_columns
from cs_models.solvers.base import IterativeSolver
from cs_models.solvers.iht import IHT, NIHT
from cs_models.solvers.irls import IRLS
from cs_models.solvers.omp import OMP
from cs_models.solvers.sparse_problem import DictionaryProblem, sparse_problem
from cs_models.solvers.stomp import StOMP
from cs_models.solvers.subspace_pursuit import CoSaMP, SubspacePursuit
from cs_models.transforms.dct import (
    DCT,
    BlockDCT2d,
    DCT2d,
    OrthonormalTransform,
    _dct_by_fft,
    _idct_by_fft,
    dct,
    dct_matrix,
    idct,
)
from datamodules.images import read_image

GREEDY = [OMP(), StOMP(), IHT(), NIHT(), SubspacePursuit(), CoSaMP(), IRLS()]
WHOLE_IMAGE = [IHT(sparsity=6), NIHT(sparsity=6), SubspacePursuit(sparsity=6), CoSaMP(sparsity=6), IRLS()]


def name_of(solver: object) -> str | None:
    return None if isinstance(solver, int | str) else type(solver).__name__


def columns(m: int, n: int, width: int, dtype: torch.dtype = torch.float64) -> ColumnOperator:
    return ColumnOperator(unit_norm_columns(gaussian_matrix(m, n, 0)).to(dtype), (n, width))


def sparse_image(n: int, width: int, k: int, seed: int = 0) -> Tensor:
    """An image ``(1, 1, n, width)`` in float64 whose columns have k coefficients of size 1 to 2 in the DCT."""
    random = np.random.RandomState(seed)
    s = np.zeros((width, n))
    for row in s:
        row[random.permutation(n)[:k]] = random.choice([-1, 1], k) * random.uniform(1, 2, k)
    return DCT().synthesis(torch.from_numpy(s)).T[None, None]


def support(x: Tensor) -> Tensor:
    return DCT().analysis(x[0, 0].T).abs() > 1e-6


# Transforms


@pytest.mark.parametrize(
    ("transform", "shape"),
    [(DCT(), (3, 7)), (DCT(), (2, 100)), (DCT2d(), (2, 33, 33)), (DCT2d(), (70, 81)), (BlockDCT2d(8), (2, 16, 24))],
    ids=lambda value: name_of(value) if isinstance(value, OrthonormalTransform) else str(value),
)
def test_transforms_are_orthonormal_and_differentiable(transform: OrthonormalTransform, shape: tuple[int, ...]) -> None:
    x, s = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(transform.synthesis(transform.analysis(x)), x, atol=1e-12)
    assert torch.isclose(transform.analysis(x).norm(), x.norm())
    signal = transform.synthesis(s)
    assert signal.dtype == torch.float64
    (gradient,) = torch.autograd.grad((signal * x).sum(), s)
    assert torch.allclose(gradient, transform.analysis(x), atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 64, 65, 100])
def test_dct_by_fft_and_by_matrix_agree(n: int) -> None:
    x = torch.randn(4, n, dtype=torch.float64)
    expected = x @ dct_matrix(n, torch.float64).T
    assert torch.allclose(dct(x), expected, atol=1e-12)
    assert torch.allclose(dct(x.T, dim=0).T, expected, atol=1e-12)
    # The branch for devices other than the CPU.
    assert torch.allclose(_dct_by_fft(x), expected, atol=1e-12)
    assert torch.allclose(_idct_by_fft(expected), x, atol=1e-12)
    assert idct(x.float()).dtype == torch.float32


def test_block_transform_refuses_ragged_images() -> None:
    with pytest.raises(ValueError, match="multiple"):
        BlockDCT2d(8).analysis(torch.zeros(12, 16))


# The problem behind an operator


@pytest.mark.parametrize("spec", ["block:8", "column", "structured:8", "pixel", "fourier"])
def test_problem_agrees_with_its_operator(spec: str) -> None:
    operator = make_operator(spec, 0.4, (16, 24)).double()
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    y = operator(x)
    problem = sparse_problem(y, operator)
    s = problem.coefficients(x)
    assert torch.allclose(problem.image(s), x, atol=1e-9)
    assert torch.allclose(problem.forward(s), problem.y, atol=1e-9)
    r = torch.randn_like(problem.y)
    assert torch.isclose((problem.forward(s).conj() * r).sum().real, (s * problem.adjoint(r)).sum())
    assert torch.isclose((problem.image(s) * x).sum(), (s * problem.image_adjoint(x)).sum())
    # Columns of norm 1 on average.
    signs = torch.randn_like(s).sign()
    assert (problem.forward(signs).abs().square().sum() / s.numel()).item() == pytest.approx(1, abs=0.3)


# Recovery


@pytest.mark.parametrize(
    ("solver", "k"),
    [
        (OMP(sparsity=6), 6),
        (StOMP(tolerance=1e-12), 6),
        # Plain IHT has the weakest promise: its short steps stop at other supports where K is larger.
        (IHT(sparsity=2, tolerance=1e-14, iterations=300), 2),
        (NIHT(sparsity=6, tolerance=1e-7, iterations=500), 6),
        (SubspacePursuit(sparsity=6), 6),
        (CoSaMP(sparsity=6), 6),
        (IRLS(tolerance=1e-6, damping=1e-9, iterations=100), 6),
        (IRLS(p=0.5, tolerance=1e-6, damping=1e-9, iterations=100), 12),
    ],
    ids=name_of,
)
def test_sparse_signals_are_recovered_exactly(solver: IterativeSolver, k: int) -> None:
    operator = columns(60, 100, 20)
    x = sparse_image(100, 20, k)
    solution = solver.solve(operator(x), operator)
    assert torch.allclose(solution.x, x, atol=1e-4)
    assert solution.residual is not None
    assert solution.residual.item() < 1e-4


@pytest.mark.parametrize(("dtype", "least_share"), [(torch.float64, 1.0), (torch.float32, 0.95)])
def test_omp_selects_what_scikit_learn_selects(dtype: torch.dtype, least_share: float) -> None:
    m, n, signals, k = 50, 200, 60, 40
    operator = columns(m, n, signals, dtype)
    x = torch.rand(1, 1, n, signals, generator=torch.Generator().manual_seed(1), dtype=dtype)
    y = operator(x)
    ours = support(OMP(sparsity=k, tolerance=0).solve(y, operator).x.double())
    problem = sparse_problem(y.double(), operator.double())
    assert isinstance(problem, DictionaryProblem)
    theirs = orthogonal_mp(problem.atoms.numpy(), problem.y.T.numpy(), n_nonzero_coefs=k) != 0
    same = (ours.numpy() == theirs.T).all(1).mean()
    assert same >= least_share


def test_stomp_keeps_the_support_within_the_measurements() -> None:
    operator = columns(20, 64, 8)
    x = torch.rand(1, 1, 64, 8, dtype=torch.float64)
    solution = StOMP(tolerance=0).solve(operator(x), operator)
    assert int(support(solution.x).sum(1).max()) == 20
    assert torch.allclose(operator(solution.x), operator(x), atol=1e-8)


def test_released_stomp_reproduces_its_golden_figure(real_data: Path) -> None:
    pixels = torch.tensor(read_image(real_data / "Set11" / "barbara.tif")).reshape(1, 1, 256, 256).float()
    x = pixels / pixels.max()
    operator = make_operator("column", 0.3, (256, 256))
    estimate = StOMP(released=True).reconstruct(operator(x), operator).clamp(0, 1)
    psnr = -10 * math.log10(float((estimate - x).square().mean()))
    # The released rule with the support capped at m, on the image divided by its maximum.
    assert psnr == pytest.approx(16.32, abs=0.1)


# What every solver keeps to


@pytest.mark.parametrize("solver", GREEDY, ids=name_of)
@pytest.mark.parametrize("spec", ["block:8", "column"])
def test_a_batch_equals_its_images_one_by_one(solver: IterativeSolver, spec: str) -> None:
    operator = make_operator(spec, 0.4, (21, 16)).double()
    y = operator(torch.rand(3, 2, 21, 16, dtype=torch.float64))
    together = solver.solve(y, operator)
    for index in range(3):
        alone = solver.solve(y[index : index + 1], operator)
        assert torch.allclose(together.x[index], alone.x[0], atol=1e-7)
        assert together.iterations is not None
        assert alone.iterations is not None
        assert together.iterations[index] == alone.iterations[0]


@pytest.mark.parametrize("solver", WHOLE_IMAGE, ids=name_of)
@pytest.mark.parametrize("spec", ["pixel", "structured:8", "fourier"])
def test_operators_on_the_whole_image_are_solved_without_a_matrix(solver: IterativeSolver, spec: str) -> None:
    smooth = torch.zeros(1, 2, 24, 24, dtype=torch.float64)
    smooth[..., :3, :2] = torch.tensor([[12.0, 2.0], [1.5, -1.0], [0.8, 0.5]], dtype=torch.float64)
    x = DCT2d().synthesis(smooth)
    operator = make_operator(spec, 0.4, (24, 24)).double()
    assert (solver.reconstruct(operator(x), operator) - x).norm() < 0.05 * x.norm()


@pytest.mark.parametrize("solver", [OMP(), StOMP()], ids=name_of)
def test_methods_that_need_atoms_say_so(solver: IterativeSolver) -> None:
    operator = make_operator("pixel", 0.4, (16, 16))
    with pytest.raises(UserError, match="choose iht"):
        solver.solve(operator(torch.rand(1, 1, 16, 16)), operator)


@pytest.mark.parametrize("solver", GREEDY, ids=name_of)
@pytest.mark.parametrize("spec", ["block:8", "column"])
class TestEdges:
    def test_black_and_constant_images(self, solver: IterativeSolver, spec: str) -> None:
        operator = make_operator(spec, 0.4, (16, 16)).double()
        x = torch.stack([torch.zeros(1, 16, 16), torch.full((1, 16, 16), 0.5)]).double()
        solution = solver.solve(operator(x), operator)
        assert torch.equal(solution.x[0], x[0])
        assert solution.converged is not None
        assert solution.converged[0]
        assert (solution.x[1] - x[1]).norm() < 0.15 * x[1].norm()

    def test_one_measurement(self, solver: IterativeSolver, spec: str) -> None:
        operator = make_operator(spec, 0.01, (8, 16))
        assert operator(torch.zeros(1, 1, 8, 16)).shape[-1] == 1
        assert torch.isfinite(solver.reconstruct(operator(torch.rand(1, 1, 8, 16)), operator)).all()

    def test_repeated_atoms(self, solver: IterativeSolver, spec: str) -> None:
        x = torch.rand(1, 1, 16, 16, dtype=torch.float64)
        n = 16 if spec == "column" else 64
        # Every second atom repeats the one before: the matrix is M with the atoms A = M D in pairs.
        basis = dct_matrix(n, torch.float64)
        if spec != "column":
            basis = torch.kron(dct_matrix(8, torch.float64), dct_matrix(8, torch.float64))
        atoms = gaussian_matrix(n // 2, n, 0)[:, torch.arange(n) // 2 * 2]
        kind = ColumnOperator if spec == "column" else BlockOperator
        twin = kind(atoms @ basis, (16, 16))
        solution = solver.solve(twin(x), twin)
        assert torch.isfinite(solution.x).all()
        assert solution.x.abs().max() < 100

    def test_nan_is_refused(self, solver: IterativeSolver, spec: str) -> None:
        operator = make_operator(spec, 0.4, (16, 16))
        y = operator(torch.rand(1, 1, 16, 16))
        y[0, 0, 0, 0] = math.nan
        with pytest.raises(UserError, match="NaN"):
            solver.solve(y, operator)

    def test_measurements_of_another_operator_are_refused(self, solver: IterativeSolver, spec: str) -> None:
        operator = make_operator(spec, 0.4, (16, 16))
        y = operator(torch.rand(1, 1, 16, 16))
        with pytest.raises(UserError, match="the operator that measured"):
            solver.solve(y[..., :-1], operator)

    def test_time_limit_returns_the_best_so_far(self, solver: IterativeSolver, spec: str) -> None:
        operator = make_operator(spec, 0.4, (16, 16))
        solution = dataclasses.replace(solver, time_limit=1e-9).solve(operator(torch.rand(1, 1, 16, 16)), operator)
        assert solution.converged is not None
        assert not solution.converged.any()
        assert torch.isfinite(solution.x).all()

    def test_settings_are_json_and_tell_solvers_apart(self, solver: IterativeSolver, spec: str) -> None:
        shown = dataclasses.replace(solver, progress=True)
        assert json.loads(json.dumps(solver.settings())) == shown.settings()
        assert dataclasses.replace(solver, time_limit=1.0).settings() != solver.settings()


@pytest.mark.parametrize("solver", [OMP(sparsity=41), IHT(sparsity=0), CoSaMP(sparsity=1000)], ids=name_of)
def test_impossible_sparsity_is_refused(solver: IterativeSolver) -> None:
    operator = columns(40, 100, 2)
    with pytest.raises(UserError, match=r"outside 1\.\.40"):
        solver.solve(operator(torch.rand(1, 1, 100, 2, dtype=torch.float64)), operator)


@pytest.mark.parametrize("arguments", [{"threshold": 0.0}, {"threshold": 1.5}, {"iterations": 0}, {"time_limit": 0.0}])
def test_settings_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected"):
        StOMP(**arguments)  # type: ignore[arg-type]


def test_complex_images_are_refused() -> None:
    operator: MeasurementOperator = FourierOperator(torch.ones(8, 8), complex_images=True)
    with pytest.raises(UserError, match="real images"):
        IHT().solve(torch.zeros(1, 1, 64, dtype=torch.complex64), operator)
