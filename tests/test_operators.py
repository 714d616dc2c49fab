"""The laws of `cs_models.operators.base`, for every operator, in float64 with relative tolerance."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from cs_models.errors import UserError
from cs_models.operator_names import OPERATORS as NAMED
from cs_models.operators import (
    BlockOperator,
    ColumnOperator,
    FourierOperator,
    MatrixOperator,
    MeasurementOperator,
    PixelOperator,
    RadonOperator,
    Sampling,
    SamplingBank,
    StructuredOperator,
    adjoint_error,
    make_operator,
)
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows, rows_for_ratio, unit_norm_columns


def random_mask(height: int, width: int) -> torch.Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(1)) < 0.4


# Every operator of the table at a size that its blocks do not fit, then special cases.
OPERATORS = {
    **{name: functools.partial(make_operator, name, 0.2, (24, 31)) for name in NAMED},
    "block, whole": lambda: make_operator("block", 0.1, (66, 33)),
    "block with a remainder of 25x25": lambda: make_operator("block", 0.4, (58, 58)),
    "block with a remainder thinner than M": lambda: make_operator("block:8", 0.5, (17, 19)),
    "block smaller than B": lambda: make_operator("block:16", 0.3, (9, 11)),
    "block, every measurement": lambda: make_operator("block:8", 1.0, (16, 16)),
    "block, plain Gaussian": lambda: BlockOperator(gaussian_matrix(20, 64, 3), (16, 13)),
    "block, repeated rows": lambda: BlockOperator(gaussian_matrix(10, 64, 3).repeat(2, 1), (16, 13)),
    "block, principal components": lambda: make_operator("block:pca", 0.1, (66, 33)),
    "block, principal components and a remainder": lambda: make_operator("block:pca:32", 0.05, (40, 35)),
    "block, principal components and a large remainder": lambda: make_operator("block:pca", 0.5, (58, 58)),
    "structured, whole": lambda: make_operator("structured:8", 0.3, (32, 24)),
    "structured with padding": lambda: make_operator("structured:8", 0.3, (19, 17)),
    "column of signals": lambda: make_operator("column", 0.15, (100, 1)),
    "fourier, asymmetric mask": lambda: FourierOperator(random_mask(12, 15)),
    "radon, more views than pixels": lambda: RadonOperator((9, 7), 13),
    "fourier, complex images": lambda: FourierOperator(random_mask(12, 15), complex_images=True),
}


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> MeasurementOperator:
    return OPERATORS[request.param]().double()


def images(operator: MeasurementOperator, channels: int, batch: int = 2) -> torch.Tensor:
    is_complex = getattr(operator, "complex_images", False)
    return torch.randn(batch, channels, *operator.image_size, dtype=torch.complex128 if is_complex else torch.float64)


def relative(difference: torch.Tensor, reference: torch.Tensor) -> float:
    return float(difference.norm() / reference.norm())


@pytest.mark.parametrize("channels", [1, 3])
def test_laws(operator: MeasurementOperator, channels: int) -> None:
    x = images(operator, channels)
    measured = operator(x)
    y = torch.randn_like(measured)

    assert operator.adjoint(y).shape == x.shape
    assert adjoint_error(operator, x, y) < 1e-12
    # A pinv(A x) = A x even where A is not onto, as with blocks cut by the border.
    assert relative(operator(operator.pinv(measured)) - measured, measured) < 1e-9
    estimate = operator.pinv(y)
    assert relative(operator.pinv(operator(estimate)) - estimate, estimate) < 1e-9
    # pinv gives the image of smallest norm: it lies in the range of A^T, so projecting it there changes nothing.
    null = x - operator.pinv(measured)
    assert abs(torch.sum(null.conj() * estimate).real) < 1e-9 * x.norm() * estimate.norm()
    assert relative(operator.normal(x) - operator.adjoint(measured), x) < 1e-12


def test_adjoint_is_the_gradient(operator: MeasurementOperator) -> None:
    """``A^T (A x - y)`` is the gradient of half the squared residual, by autograd."""
    x = images(operator, 1).requires_grad_()
    y = torch.randn_like(operator(x.detach()))
    residual = operator(x) - y
    (gradient,) = torch.autograd.grad(0.5 * residual.abs().square().sum(), x)
    assert relative(gradient - operator.adjoint(residual.detach()), gradient) < 1e-10


def test_batch_and_channels_are_independent(operator: MeasurementOperator) -> None:
    x = images(operator, 3)
    alone = torch.stack([torch.cat([operator(x[i : i + 1, c : c + 1]) for c in range(3)], 1)[0] for i in range(2)])
    torch.testing.assert_close(operator(x), alone)


def test_state_dict_and_moves(operator: MeasurementOperator) -> None:
    x = images(operator, 1)
    y = operator(x)
    state = operator.state_dict()
    operator.load_state_dict(state)
    single = operator.float()
    x32 = x.to(torch.complex64 if x.is_complex() else torch.float32)
    torch.testing.assert_close(single(x32).to(y.dtype), y, atol=1e-4, rtol=1e-4)
    assert single.adjoint(single(x32)).dtype == x32.dtype
    assert all(buffer.is_meta for buffer in operator.to("meta").buffers())


def test_padded_takes_the_same_measurements(operator: MeasurementOperator) -> None:
    x = images(operator, 1)
    padded = operator.padded()
    (height, width), (padded_height, padded_width) = operator.image_size, padded.image_size
    zeros = torch.nn.functional.pad(x, (0, padded_width - width, 0, padded_height - height))
    torch.testing.assert_close(padded(zeros), operator(x))


def test_another_size(operator: MeasurementOperator) -> None:
    if isinstance(operator, FourierOperator) and "pattern" not in operator.source:
        with pytest.raises(UserError, match="is for 12x15 images"):
            operator.resized(20, 20)
        return
    other = operator.resized(operator.image_size[0], 7)
    assert other(torch.randn(1, 1, *other.image_size, dtype=torch.float64)).isfinite().all()
    assert other.spec == operator.spec


@pytest.mark.parametrize(("size", "ratio"), [((66, 66), 0.1), ((58, 58), 0.4), ((40, 70), 0.25)])
def test_convolution_is_the_matrix_form(size: tuple[int, int], ratio: float) -> None:
    operator = BlockOperator.gaussian(ratio, size).double()
    x = images(operator, 3)
    y = operator(x)
    torch.testing.assert_close(y, MatrixOperator.forward(operator, x))
    torch.testing.assert_close(operator.adjoint(y), MatrixOperator.adjoint(operator, y))


@pytest.mark.parametrize("name", OPERATORS)
def test_float32_under_autocast(name: str) -> None:
    operator = OPERATORS[name]().float()
    x = images(operator, 1)
    x = x.to(torch.complex64 if x.is_complex() else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = operator(x)
        image = operator.adjoint(y)
    torch.testing.assert_close(y, operator(x), atol=0, rtol=0)
    torch.testing.assert_close(image, operator.adjoint(y), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["block:8", "block:pca", "structured:8", "pixel"])
def test_smaller_ratios_measure_a_part_of_larger_ones(kind: str) -> None:
    x = torch.rand(1, 1, 24, 24)
    small, large = make_operator(kind, 0.1, (24, 24), seed=5), make_operator(kind, 0.5, (24, 24), seed=5)
    y_small = small(x)
    torch.testing.assert_close(y_small, large(x)[..., : y_small.shape[-1]])


def test_nested_before_normalisation() -> None:
    """Column matrices are nested up to the scale of each column."""
    small, large = ColumnOperator.gaussian(0.1, (50, 1)).matrix, ColumnOperator.gaussian(0.5, (50, 1)).matrix
    ratio = large[: len(small)] / small
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-4, rtol=1e-4)


def test_seeds() -> None:
    first, second = make_operator("block:8", 0.2, (16, 16), seed=1), make_operator("block:8", 0.2, (16, 16), seed=1)
    other = make_operator("block:8", 0.2, (16, 16), seed=2)
    assert torch.equal(first.matrix, second.matrix)
    assert not torch.equal(first.matrix, other.matrix)
    # A seed means the same numbers for ever.
    expected = np.random.RandomState(7).randn(3, 5)
    assert np.array_equal(gaussian_matrix(3, 5, 7).numpy(), expected)


def test_matrices_are_what_the_papers_have() -> None:
    rows = orthonormal_rows(gaussian_matrix(109, 1089, 0))
    torch.testing.assert_close(rows @ rows.T, torch.eye(109, dtype=torch.float64))
    columns = unit_norm_columns(gaussian_matrix(30, 100, 0))
    torch.testing.assert_close(columns.norm(dim=0), torch.ones(100, dtype=torch.float64))
    assert [rows_for_ratio(ratio, 1089) for ratio in (0.04, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)] == [
        44, 109, 218, 272, 327, 436, 545,
    ]  # fmt: skip
    assert StructuredOperator.gaussian(0.1, (32, 32)).matrix.shape == (103, 1024)
    assert ColumnOperator.gaussian(0.3, (256, 1)).matrix.shape == (76, 256)


def test_same_row_space_as_the_reference_matrix(real_data: Path) -> None:
    """Seed 0 spans the rows of the matrix behind the golden figures, so figures can be compared."""
    theirs = torch.from_numpy(np.load(real_data / "official/sampling_matrix/gauss_orth_rs0_109x1089.npy"))
    ours = BlockOperator.gaussian(0.1, (33, 33)).matrix.to(theirs)
    torch.testing.assert_close(ours.T @ ours, theirs.T @ theirs, atol=1e-6, rtol=0)


def test_noise_is_seeded_and_of_the_stated_size() -> None:
    operator = make_operator("pixel", 1.0, (64, 64), noise_sigma=0.1)
    x = torch.zeros(1, 1, 64, 64)
    first = operator.measure(x, torch.Generator().manual_seed(3))
    assert torch.equal(first, operator.measure(x, torch.Generator().manual_seed(3)))
    assert first.std().item() == pytest.approx(0.1, rel=0.05)


def test_pixel_operator_keeps_the_stated_pixels() -> None:
    operator = PixelOperator((10, 12), 0.25, seed=0)
    expected = np.random.RandomState(0).permutation(120)[:30]
    assert np.array_equal(operator.pixels.numpy(), expected)
    assert operator.mask.sum() == 30


@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0])
def test_radial_mask(ratio: float) -> None:
    operator = FourierOperator.radial(ratio, (32, 30))
    mask = operator.mask
    assert mask[0, 0]
    assert torch.equal(mask, torch.roll(mask.flip(0, 1), (1, 1), (0, 1)))
    assert ratio <= mask.float().mean().item() <= min(1.0, ratio + 0.07)


def test_bank_draws_depend_on_seed_and_step_alone() -> None:
    sampling = Sampling(ratios=(0.1, 0.3, 0.5), block_size=8, matrices_per_ratio=4, noise_sigma=10)
    bank, other = SamplingBank(sampling), SamplingBank(sampling)
    specs = [bank.draw(step, (16, 16)).spec for step in range(30)]
    assert other.draw(17, (16, 16)).spec == specs[17]
    assert {spec["ratio"] for spec in specs} == {0.1, 0.3, 0.5}
    assert {spec["index"] for spec in specs} == {0, 1, 2, 3}
    sigmas = {bank.draw(step, (16, 16)).noise_sigma for step in range(30)}
    assert len(sigmas) == 30
    assert max(sigmas) <= 10 / 255


def test_ratios_as_a_range() -> None:
    """A range says its ratios, and says the same when a checkpoint's header with all of them builds it again."""
    sampling = Sampling(ratios=(0.01, 0.5), ratio_step=0.01)
    assert sampling.ratios == tuple(percent / 100 for percent in range(1, 51))
    assert Sampling(**asdict(sampling)) == sampling
    assert Sampling(ratios=(0.1, 0.95), ratio_step=0.3).ratios == (0.1, 0.4, 0.7)
    drawn = {SamplingBank(Sampling((0.1, 0.3), block_size=8, ratio_step=0.1)).draw(s, (8, 8)).ratio for s in range(30)}
    assert drawn == {0.1, 0.2, 0.3}


@pytest.mark.parametrize(
    ("ratios", "step", "message"),
    [
        ((0.1, 0.5), 0.0, "at least 0.001"),
        ((0.1, 0.5), float("nan"), "at least 0.001"),
        ((0.1, 0.5), 1e-9, "at least 0.001"),
        ((0.3,), 0.1, "the first to the last of two ratios"),
        ((0.5, 0.1), 0.1, "the first to the last of two ratios"),
        ((0.1, 0.2), float("inf"), "the first to the last of two ratios"),
        ((), 0.1, "the first to the last of two ratios"),
        ((0.1, 5e9), 0.1, "outside"),
    ],
)
def test_wrong_ranges_of_ratios(ratios: tuple[float, ...], step: float, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Sampling(ratios=ratios, ratio_step=step)
    assert "\n" not in str(caught.value)


def test_bank_matrices_are_unseen_by_evaluation() -> None:
    training = SamplingBank(Sampling(block_size=8)).matrix(0.5)
    assert not any(torch.equal(training, make_operator("block:8", 0.5, (8, 8), seed).matrix) for seed in range(20))


@pytest.mark.parametrize("kind", ["pixel", "cartesian", "radial", "radon"])
def test_the_bank_draws_what_has_no_matrix(kind: str) -> None:
    bank, again = (SamplingBank(Sampling(ratios=(0.3,), kind=kind, noise_sigma=5)) for _ in range(2))  # type: ignore[arg-type]
    draws = [bank.draw(step, (16, 16)) for step in range(4)]
    assert len({operator.noise_sigma for operator in draws}) == 4
    assert len({str(operator.spec) for operator in draws}) == (4 if kind == "pixel" else 1)
    assert again.draw(3, (16, 16)).spec == draws[3].spec
    assert make_operator(bank.sampling.operator, 0.3, (16, 16)).spec["kind"] == kind


def test_structured_bank_permutes_anew_each_step() -> None:
    bank = SamplingBank(Sampling(kind="structured", block_size=8))
    first, second = bank.draw(0, (16, 16)), bank.draw(1, (16, 16))
    usual = StructuredOperator.gaussian(first.ratio, (16, 16), block_size=8)
    assert first.matrix.shape == usual.matrix.shape, "evaluation measures as often as training"
    assert first.spec["permutation_seed"] != second.spec["permutation_seed"]


def test_matrix_files(tmp_path: Path) -> None:
    matrix = orthonormal_rows(gaussian_matrix(109, 1089, 9)).numpy()
    np.save(tmp_path / "phi.npy", matrix)
    savemat(tmp_path / "phi.mat", {"phi": matrix})
    x = torch.rand(1, 1, 50, 40)
    from_npy, from_mat = (make_operator(str(tmp_path / name), 0.1, (50, 40)) for name in ("phi.npy", "phi.mat"))
    torch.testing.assert_close(from_npy(x), from_mat(x))
    assert isinstance(from_npy, BlockOperator)
    # A smaller ratio takes the first rows; a matrix within one row of the rule's number is taken whole.
    assert make_operator(str(tmp_path / "phi.npy"), 0.05, (50, 40))(x).shape[-1] == 54
    np.save(tmp_path / "released.npy", np.random.randn(544, 1089))
    assert make_operator(str(tmp_path / "released.npy"), 0.5, (33, 33))(x[..., :33, :33]).shape[-1] == 544
    np.save(tmp_path / "column.npy", np.random.randn(20, 50))
    assert isinstance(make_operator(str(tmp_path / "column.npy"), 0.4, (50, 40)), ColumnOperator)
    np.save(tmp_path / "mask.npy", random_mask(50, 40).numpy())
    assert isinstance(make_operator(str(tmp_path / "mask.npy"), 0.4, (50, 40)), FourierOperator)


def write_bad_matrix(folder: Path, kind: str) -> str:
    path = folder / "bad.npy"
    if kind == "rows":
        np.save(path, np.random.randn(50, 1089))
    elif kind == "square":
        np.save(path, np.random.randn(50, 1000))
    elif kind == "tall":
        np.save(path, np.random.randn(100, 25))
    elif kind == "nan":
        np.save(path, np.full((109, 1089), np.nan))
    elif kind == "complex":
        np.save(path, np.ones((109, 1089)) * 1j)
    elif kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "truncated":
        np.save(path, np.random.randn(109, 1089))
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "key":
        path = folder / "bad.mat"
        savemat(path, {"a": np.eye(3), "b": np.eye(3)})
    return str(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rows", "ratio 0.1 needs 109 rows"),
        ("square", "B\\*B columns"),
        ("tall", "more columns than rows"),
        ("nan", "not finite"),
        ("complex", "expected a real matrix"),
        ("pickle", "cannot read"),
        ("truncated", "cannot read"),
        ("key", "has no variable 'phi'"),
        ("missing", "not found"),
    ],
)
def test_bad_matrix_files(tmp_path: Path, kind: str, message: str) -> None:
    ratio = 0.05 if kind == "square" else 0.1
    with pytest.raises(UserError, match=message) as caught:
        make_operator(write_bad_matrix(tmp_path, kind), ratio, (40, 60))
    assert "\n" not in str(caught.value)


BAD_WORDS = [
    "blok", "block:x", "column:8", "block:0", "phi.txt",
    "block:pac", "block:pca32", "block:pca:x", "block:pca:0", "block:pca:16", "block:pca:pca", "structured:pca",
]  # fmt: skip


@pytest.mark.parametrize("spec", BAD_WORDS)
def test_bad_operator_words(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        make_operator(spec, 0.1, (33, 33))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.1, float("nan")])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(UserError, match="outside \\(0, 1\\]"):
        make_operator("block", ratio, (33, 33))
