"""ISTA, FISTA, LASSO, OWL-QN, weighted l1, total variation, plug-and-play and what they stand on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from PIL import Image
from sklearn.linear_model import Lasso
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators import (
    FourierOperator,
    PixelOperator,
    Transform2dOperator,
    make_operator,
)
from cs_models.solvers.convex import ConvexSolver, DataProximal, constant_image, operator_norm_squared
from cs_models.solvers.ista import FISTA, ISTA, LASSO, WeightedL1
from cs_models.solvers.owlqn import OWLQN
from cs_models.solvers.pnp import DCTDenoiser, PlugAndPlay
from cs_models.solvers.tv import TotalVariation, gradient, gradient_adjoint
from cs_models.transforms.wavelets import Wavelet2d
from cs_models.zoo.methods import build_method

OPERATORS = ["block:8", "structured:8", "column", "pixel", "fourier", "transform2d"]
SOLVERS = [ISTA, FISTA, LASSO, OWLQN, WeightedL1, TotalVariation, PlugAndPlay]


def asymmetric_fourier(size: tuple[int, int]) -> FourierOperator:
    """Conjugate coefficients measured once, twice or never: A A^T is no projector for real images."""
    return FourierOperator(torch.rand(size, generator=torch.Generator().manual_seed(3)) < 0.5)


def scene(height: int = 32, width: int = 32, images: int = 1, channels: int = 1) -> Tensor:
    """Smooth shading with a bright rectangle, different in every image and channel."""
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    pictures = []
    for index in range(images * channels):
        picture = 0.3 + 0.2 * torch.sin(3 * rows + index) * torch.cos(2 * columns)
        picture[height // 4 : height // 2 + index, width // 3 : 2 * width // 3] += 0.4
        pictures.append(picture)
    return torch.stack(pictures).view(images, channels, height, width)


def psnr(estimate: Tensor, x: Tensor) -> float:
    return float(-10 * torch.log10((estimate.clamp(0, 1) - x).square().mean()))


# The l1 problem


@pytest.mark.parametrize(("transform", "intercept"), [("dct", False), ("flat", True)])
def test_lasso_fista_and_owlqn_reach_the_minimum_of_scikit_learn(transform: str, intercept: bool) -> None:
    x, weight = scene(12, 12).double(), 5.0
    operator = PixelOperator((12, 12), 0.5, seed=0)
    y = operator(x)
    solver = LASSO(weight=weight, iterations=3000, tolerance=1e-9, transform=transform, intercept=intercept)
    basis = solver.problem(y, operator).transform.synthesis(torch.eye(144, dtype=torch.float64).view(144, 1, 12, 12))
    dense = operator(basis)[:, 0].T.numpy()
    # scikit-learn minimises |b - A s|^2 / (2 m) + alpha |s|_1.
    reference = Lasso(alpha=weight / (2 * len(dense)), fit_intercept=intercept, max_iter=100_000, tol=1e-10)
    reference.fit(dense, 255 * y[0, 0].numpy())
    residual = dense @ reference.coef_ + reference.intercept_ - 255 * y[0, 0].numpy()
    expected = residual @ residual + weight * np.abs(reference.coef_).sum()
    owlqn = OWLQN(weight=weight, iterations=2000, tolerance=1e-9, transform=transform, intercept=intercept)
    for method in (solver, owlqn):
        solution = method.solve(y, operator)
        assert method.objective(solution.x, y, operator).item() == pytest.approx(expected, rel=1e-6)
        assert solution.converged is not None
        assert solution.converged.all()


@pytest.mark.parametrize("solver", [LASSO(iterations=1000), OWLQN(iterations=500)])
def test_lasso_reaches_the_golden_objective_on_a_photograph(solver: LASSO | OWLQN, real_data: Path) -> None:
    photo = np.array(Image.open(real_data / "Set11" / "Monarch.tif").convert("L"))
    x = torch.from_numpy(photo).float()[None, None] / 255
    operator = PixelOperator((256, 256), 0.1, seed=0)
    y = operator(x)
    estimate = solver.reconstruct(y, operator)
    assert solver.objective(estimate, y, operator).item() == pytest.approx(2168874.3, rel=1e-4)
    assert psnr(estimate, x) == pytest.approx(17.155, abs=0.02)


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_objective_of_ista_falls_in_every_iteration(kind: str) -> None:
    x = scene(20, 20).double()
    operator = make_operator(kind, 0.4, (20, 20)).double()
    y = operator(x)
    objectives = []
    for iterations in range(1, 12):
        solver = ISTA(iterations=iterations, tolerance=0)
        objectives.append(solver.objective(solver.reconstruct(y, operator), y, operator).item())
    assert all(after < before for before, after in itertools.pairwise(objectives))


@pytest.mark.parametrize(
    ("kind", "transform"), [*((kind, "dct") for kind in OPERATORS), ("block:8", "dct4"), ("pixel", "db2")]
)
def test_fista_and_owlqn_agree_on_every_operator_and_transform(kind: str, transform: str) -> None:
    operator = make_operator(kind, 0.4, (16, 16)).double()
    y = operator(scene(16, 16).double())
    fista = FISTA(transform=transform, iterations=2000, tolerance=1e-6)
    owlqn = OWLQN(transform=transform, iterations=1000, tolerance=1e-6)
    objectives = [solver.objective(solver.reconstruct(y, operator), y, operator).item() for solver in (fista, owlqn)]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-4)


def test_a_fista_solution_satisfies_the_optimality_conditions() -> None:
    operator = Transform2dOperator((16, 16), 0.5).double()
    y = operator(scene(16, 16).double())
    solver = WeightedL1(iterations=5000, tolerance=1e-12)
    problem = solver.problem(y, operator)
    s = problem.transform.analysis(solver.reconstruct(y, operator))
    gradient_of_data = problem.gradient(problem.residual(s, y))
    threshold = torch.as_tensor(problem.threshold).expand_as(s)
    support = s.abs() > 1e-9
    assert 0 < support.sum() < s.numel()
    torch.testing.assert_close(gradient_of_data[support], -(threshold * s.sign())[support], atol=1e-7, rtol=0)
    assert (gradient_of_data.abs() <= threshold + 1e-7)[~support].all()


def test_weighted_l1_is_3_db_better_than_lasso_from_a_tenth_of_the_pixels(real_data: Path) -> None:
    gains = []
    for name in ("barbara.tif", "cameraman.tif", "house.tif"):
        photo = np.array(Image.open(real_data / "Set11" / name).convert("L"))
        x = torch.from_numpy(photo).float()[None, None] / 255
        operator = PixelOperator((x.shape[-2], x.shape[-1]), 0.1, seed=0)
        plain, weighted = (method(iterations=100).reconstruct(operator(x), operator) for method in (LASSO, WeightedL1))
        gains.append(psnr(weighted, x) - psnr(plain, x))
    assert np.mean(gains) > 2.5


# Total variation


def test_a_mask_that_leaves_the_mean_out_starts_from_black() -> None:
    mask = torch.zeros(12, 15, dtype=torch.bool)
    mask[3:7, 2:9] = True
    operator = FourierOperator(mask)
    y = operator(torch.rand(1, 1, 12, 15))
    assert torch.equal(constant_image(y, operator), torch.zeros(1, 1, 12, 15))
    assert FISTA(iterations=5).reconstruct(y, operator).isfinite().all()


def test_gradient_and_its_adjoint() -> None:
    x, g = torch.randn(2, 3, 5, 7).double(), torch.randn(2, 2, 3, 5, 7).double()
    torch.testing.assert_close((gradient(x) * g).sum(), (x * gradient_adjoint(g)).sum())
    assert gradient(torch.ones(1, 1, 4, 6)).abs().max() == 0


@pytest.mark.parametrize(
    ("kind", "isotropic"),
    [*((kind, True) for kind in (*OPERATORS, "asymmetric_fourier")), ("block:8", False), ("asymmetric_fourier", False)],
)
def test_total_variation_minimises_its_objective(kind: str, isotropic: bool) -> None:
    size = (10, 12)
    operator = (asymmetric_fourier(size) if kind == "asymmetric_fourier" else make_operator(kind, 0.5, size)).double()
    y = operator(scene(*size).double())
    solver = TotalVariation(weight=0.01, isotropic=isotropic, iterations=2000, tolerance=1e-10)
    x = solver.reconstruct(y, operator)
    # Duality: x is optimal if a field p with |p| <= weight satisfies A^T (A x - y) + grad^T p = 0 and
    # <p, grad x> = weight TV(x). The field is fitted by projected gradient descent.
    assert is_optimal(x, operator.adjoint(operator(x) - y), 0.01, isotropic)
    best = solver.objective(x, y, operator)
    for seed in range(20):
        nearby = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double()
        assert solver.objective(nearby, y, operator) >= best


def is_optimal(x: Tensor, data_gradient: Tensor, weight: float, isotropic: bool) -> bool:
    """Whether the data term's gradient is, to a thousandth, ``-weight`` times a subgradient of TV at x."""
    slope = gradient(x)
    length = torch.hypot(slope[:, :1], slope[:, 1:]) if isotropic else slope.abs()
    edge = length > 1e-5
    fixed = weight * slope / length.clamp_min(1e-30)
    p = torch.where(edge, fixed, 0)
    ahead, momentum = p, 1.0
    for _ in range(3000):
        if (gradient_adjoint(p) + data_gradient).norm() < 1e-3 * data_gradient.norm():
            return True
        moved = ahead - gradient(gradient_adjoint(ahead) + data_gradient) / 8
        norm = torch.hypot(moved[:, :1], moved[:, 1:]) if isotropic else moved.abs()
        moved = torch.where(edge, fixed, moved * (weight / norm.clamp_min(weight)))
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead, p, momentum = moved + (momentum - 1) / following * (moved - p), moved, following
    return False


def test_column_wise_total_variation_meets_the_target(real_data: Path) -> None:
    values = []
    for path in sorted((real_data / "Set11").iterdir()):
        x = torch.from_numpy(np.array(Image.open(path).convert("L"))).float()[None, None] / 255
        operator = make_operator("column", 0.3, (x.shape[-2], x.shape[-1]))
        values.append(psnr(TotalVariation(iterations=60).reconstruct(operator(x), operator), x))
    assert np.mean(values) > 27.5


def test_total_variation_smooths_more_where_the_measurements_are_noisier() -> None:
    x = scene()
    clean, noisy = (make_operator("pixel", 0.6, (32, 32), noise_sigma=sigma) for sigma in (0.0, 0.1))
    y = noisy.measure(x, torch.Generator().manual_seed(0))
    assert psnr(TotalVariation().reconstruct(y, noisy), x) > psnr(TotalVariation().reconstruct(y, clean), x) + 2


# Plug-and-play


def test_dct_denoiser_keeps_images_without_noise_and_cleans_noisy_ones() -> None:
    x = scene(24, 40, images=2, channels=3)
    torch.testing.assert_close(DCTDenoiser()(x, 0.0), x)
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(DCTDenoiser()(noisy, 0.1), x) > psnr(noisy, x) + 5


def test_dct_denoiser_is_the_mean_over_all_block_positions() -> None:
    x, size = scene(9, 11), 4
    denoised = DCTDenoiser(block_size=size, threshold=3.0)(x, 0.05)
    padded = np.pad(x[0, 0].double().numpy(), size - 1, mode="reflect")
    total = np.zeros_like(padded)
    from scipy.fft import dctn, idctn

    for i in range(padded.shape[0] - size + 1):
        for j in range(padded.shape[1] - size + 1):
            block = dctn(padded[i : i + size, j : j + size], norm="ortho")
            kept = np.where(np.abs(block) > 0.15, block, 0)
            kept[0, 0] = block[0, 0]
            total[i : i + size, j : j + size] += idctn(kept, norm="ortho")
    expected = total[size - 1 : 1 - size, size - 1 : 1 - size] / size**2
    np.testing.assert_allclose(denoised[0, 0].numpy(), expected, atol=1e-6)


def test_plug_and_play_takes_any_denoiser_and_gives_it_falling_noise_levels() -> None:
    levels: list[float] = []

    def blur(x: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        return torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    operator = make_operator("pixel", 0.5, (16, 16))
    x = scene(16, 16)
    solver = PlugAndPlay(denoiser=blur, iterations=8, sigma_start=0.5, sigma_end=0.1)
    assert psnr(solver.reconstruct(operator(x), operator), x) > psnr(constant_image(operator(x), operator), x)
    assert levels == pytest.approx(np.geomspace(0.5, 0.1, 8))


def test_plug_and_play_meets_the_target_of_full_image_sampling(real_data: Path) -> None:
    x = torch.from_numpy(np.array(Image.open(real_data / "Set11" / "house.tif").convert("L"))).float()[None, None] / 255
    operator = Transform2dOperator((256, 256), 0.1)
    assert psnr(PlugAndPlay(iterations=40).reconstruct(operator(x), operator), x) > 30


def test_the_settings_of_plug_and_play_tell_denoisers_apart() -> None:
    class Network(torch.nn.Linear):
        def forward(self, x: Tensor, sigma: float) -> Tensor:
            return x

    torch.manual_seed(0)
    descriptions = [
        json.dumps(PlugAndPlay(denoiser=denoiser).settings(), sort_keys=True)
        for denoiser in (DCTDenoiser(), DCTDenoiser(threshold=2.5), Network(2, 2), Network(2, 2), torch.clamp)
    ]
    assert len(set(descriptions)) == 5, "two networks of one class have different weights"
    assert json.dumps(PlugAndPlay().settings(), sort_keys=True) == descriptions[0]


# What every solver promises


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("method", SOLVERS)
def test_every_solver_takes_every_operator_in_colour_and_any_size(method: type[ConvexSolver], kind: str) -> None:
    x = scene(22, 30, images=2, channels=3)
    operator = make_operator(kind, 0.5, (22, 30))
    y = operator(x)
    solution = method(iterations=60).solve(y, operator)
    assert solution.x.shape == x.shape
    assert solution.iterations is not None
    assert solution.iterations.shape == (2,)
    assert solution.residual is not None
    measured = (operator(solution.x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    torch.testing.assert_close(solution.residual, measured.real)
    assert psnr(solution.x, x) > psnr(constant_image(y, operator), x) + 1


@pytest.mark.parametrize("method", SOLVERS)
def test_an_image_is_reconstructed_the_same_alone_and_in_a_batch(method: type[ConvexSolver]) -> None:
    x = scene(24, 24, images=3).double()
    x[1] = 0.5  # settles at once
    operator = make_operator("block:8", 0.5, (24, 24)).double()
    solver = method(iterations=80, tolerance=1e-3)
    together = solver.solve(operator(x), operator)
    for index in range(3):
        alone = solver.solve(operator(x[index : index + 1]), operator)
        torch.testing.assert_close(together.x[index], alone.x[0], atol=1e-7, rtol=0)
        assert together.iterations is not None
        assert together.converged is not None
        assert alone.iterations is not None
        assert alone.converged is not None
        assert together.iterations[index] == alone.iterations[0]
        assert together.converged[index] == alone.converged[0]


@pytest.mark.parametrize("name", ["ista", "fista", "lasso", "owlqn", "weighted_l1", "tv", "pnp"])
def test_every_solver_is_set_from_the_command_line(name: str) -> None:
    solver = build_method(f"{name}:iterations=7:time_limit=2.5", ratio=0.1)
    settings = solver.settings()
    assert (settings["iterations"], settings["time_limit"]) == (7, 2.5)
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("method", SOLVERS)
def test_a_time_limit_ends_the_iterations_and_says_so(method: type[ConvexSolver]) -> None:
    operator = make_operator("pixel", 0.1, (128, 128))
    solver = method(iterations=10_000, tolerance=0, time_limit=0.01)
    solution = solver.solve(operator(scene(128, 128)), operator)
    assert solution.iterations is not None
    assert solution.iterations.item() < 10_000
    assert solution.converged is not None
    assert not solution.converged.any()
    assert solution.x.isfinite().all()


@pytest.mark.parametrize("method", SOLVERS)
def test_a_black_image_gives_black(method: type[ConvexSolver]) -> None:
    operator = make_operator("block:8", 0.5, (16, 16))
    solution = method().solve(operator(torch.zeros(1, 1, 16, 16)), operator)
    torch.testing.assert_close(solution.x, torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("method", SOLVERS)
def test_complex_images_are_refused_in_one_line(method: type[ConvexSolver]) -> None:
    operator = FourierOperator(torch.ones(8, 8), complex_images=True)
    with pytest.raises(UserError, match="real images") as error:
        method().solve(torch.zeros(1, 1, 64, dtype=torch.complex64), operator)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LASSO(weight=0), "weight is 0"),
        (lambda: LASSO(iterations=0), "iterations is 0"),
        (lambda: FISTA(tolerance=-1), "tolerance is -1"),
        (lambda: FISTA(transform="db44"), "no orthogonal wavelet"),
        (lambda: FISTA(transform="bior2.2"), "no orthogonal wavelet"),
        (lambda: FISTA(transform="haar", by_frequency=True), "transform=dct"),
        (lambda: FISTA(transform="dct8", intercept=True), "transform=dct or flat"),
        (lambda: OWLQN(memory=0), "memory is 0"),
        (lambda: TotalVariation(weight=-1.0), "weight is -1"),
        (lambda: PlugAndPlay(sigma_start=0.001), "sigma_start is 0.001"),
        (lambda: PlugAndPlay(rho=0), "rho is 0"),
    ],
)
def test_settings_outside_their_range_are_refused_in_one_line(build: Callable[[], ConvexSolver], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (FISTA(transform="db2"), "multiples of 16"),
        (FISTA(transform="dct8"), "multiples of 8"),
        (PlugAndPlay(), "at least 8x8"),
    ],
)
def test_images_that_a_transform_cannot_take_are_refused_in_one_line(solver: ConvexSolver, message: str) -> None:
    operator = make_operator("pixel", 0.5, (7, 30))
    with pytest.raises(UserError, match=message) as error:
        solver.solve(operator(scene(7, 30)), operator)
    assert "\n" not in str(error.value)


def test_one_dimensional_signals() -> None:
    signals = torch.cumsum(torch.randn(3, 1, 64, 1, generator=torch.Generator().manual_seed(0)).sign(), dim=2) / 16
    operator = make_operator("column", 0.5, (64, 1))
    y = operator(signals)
    for method in (LASSO, OWLQN, WeightedL1, TotalVariation):
        assert psnr_of_signals(method().reconstruct(y, operator), signals) > 15


def psnr_of_signals(estimate: Tensor, x: Tensor) -> float:
    return float(-10 * torch.log10((estimate - x).square().mean() / (x.max() - x.min()) ** 2))


# What they stand on


@pytest.mark.parametrize("kind", [*OPERATORS, "asymmetric_fourier"])
def test_operator_norm(kind: str) -> None:
    size = (9, 11)
    operator = (asymmetric_fourier(size) if kind == "asymmetric_fourier" else make_operator(kind, 0.5, size)).double()
    basis = torch.eye(99, dtype=torch.float64).view(99, 1, *size)
    exact = torch.linalg.matrix_norm(operator.normal(basis).flatten(1), ord=2).item()
    assert exact <= operator_norm_squared(operator) * (1 + 1e-6)
    # A block that the border cuts samples fewer pixels than the matrix has columns.
    assert operator_norm_squared(operator) <= 1.6 * exact


@pytest.mark.parametrize("kind", [*OPERATORS, "asymmetric_fourier"])
def test_data_proximal_solves_its_normal_equations(kind: str) -> None:
    size = (10, 11)
    operator = (asymmetric_fourier(size) if kind == "asymmetric_fourier" else make_operator(kind, 0.5, size)).double()
    padded = operator.padded()
    v = torch.rand(2, 1, *padded.image_size).double()
    y = operator(torch.rand(2, 1, *size).double())
    proximal = DataProximal(operator, 0.05)
    w, k = proximal(v, y)
    for found in (w, proximal(v, y, torch.randn_like(k))[0]):
        torch.testing.assert_close(padded.normal(found) + 0.05 * found, padded.adjoint(y) + 0.05 * v, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "levels"), [("haar", 3), ("db4", 2), ("sym5", 1), ("db8", 3)])
def test_wavelets_are_orthonormal(name: str, levels: int) -> None:
    x = torch.randn(2, 3, 16, 24).double()
    transform = Wavelet2d(name, levels)
    coefficients = transform.analysis(x)
    torch.testing.assert_close(transform.synthesis(coefficients), x)
    torch.testing.assert_close(coefficients.norm(), x.norm())


@pytest.mark.parametrize("name", ["haar", "db4", "sym5", "coif2"])
def test_a_wavelet_level_equals_pywavelets(name: str) -> None:
    x = torch.randn(16, 24).double()
    # PyWavelets centres its periodic filters; ours start at the pixel.
    shift = pywt.Wavelet(name).dec_len // 2 - 1
    coefficients = Wavelet2d(name, levels=1).analysis(x.roll((shift, shift), (0, 1)))
    coarse, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), name, mode="periodization")
    expected = np.block([[coarse, vertical], [horizontal, diagonal]])
    np.testing.assert_allclose(coefficients.numpy(), expected, atol=1e-12)


def test_full_image_sampling_is_nested_and_seeded() -> None:
    x = scene(16, 16)
    few, many = Transform2dOperator((16, 16), 0.1, seed=2), Transform2dOperator((16, 16), 0.4, seed=2)
    torch.testing.assert_close(few(x), many(x)[..., : few(x).shape[-1]])
    assert not torch.equal(Transform2dOperator((16, 16), 0.1, seed=3)(x), few(x))
    assert few.spec != Transform2dOperator((16, 16), 0.1, seed=3).spec
    assert few.resized(8, 20)(torch.ones(1, 1, 8, 20)).shape == (1, 1, 16)
    torch.testing.assert_close(few.resized(16, 16)(x), few(x))
