"""In Python: what is no image, no measurement or no operator is named in one line, and so are results of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.operators import BlockOperator, MeasurementOperator, make_operator
from cs_models.operators.canvas import Canvas
from cs_models.reconstruction import Reconstructor, Solution
from cs_models.solvers.linear import PseudoInverse
from cs_models.transforms.wavelets import Wavelet2d
from cs_models.zoo.methods import METHODS, build_method

SIZE = (18, 12)
OPERATORS = ["block:8", "structured:8", "column", "pixel", "fourier", "cartesian", "transform2d", "radon"]


@pytest.fixture(params=[*OPERATORS, "canvas"])
def operator(request: pytest.FixtureRequest) -> MeasurementOperator:
    if request.param == "canvas":
        return Canvas(make_operator("block:8", 0.4, (16, 10)), SIZE)
    return make_operator(request.param, 0.4, SIZE)


def one_line(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_good_images_and_measurements_pass(operator: MeasurementOperator) -> None:
    x = torch.rand(2, 3, *SIZE)
    y = operator(x)
    assert operator.measurement_shape == y.shape[2:]
    assert operator.adjoint(y).shape == operator.pinv(y).shape == x.shape


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ((255 * torch.rand(1, 1, *SIZE)).to(torch.uint8), ["torch.uint8", "/ 255"]),
        (torch.ones(1, 1, *SIZE, dtype=torch.int64), ["torch.int64"]),
        (torch.rand(1, 1, *SIZE) > 0.5, ["torch.bool"]),
        (np.zeros((1, 1, *SIZE), np.float32), ["ndarray", "torch.from_numpy"]),
        (torch.rand(*SIZE), ["(18, 12)", "(N, C, 18, 12)"]),
        (torch.rand(1, *SIZE), ["(1, 18, 12)"]),
        (torch.rand(1, 1, *SIZE[::-1]), ["(1, 1, 12, 18)", "resized"]),
        (torch.rand(1, 1, 19, 12), ["(1, 1, 19, 12)"]),
        (None, ["NoneType"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) and isinstance(value[0], str) else "image",
)
def test_what_is_no_image(operator: MeasurementOperator, x: Any, words: list[str]) -> None:
    one_line(lambda: operator(x), *words)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y[..., :-1],
        lambda y: torch.cat([y, y[..., :1]], -1),
        lambda y: y[0],
        lambda y: y.flatten(),
        lambda y: y[None],
        lambda y: y.real.to(torch.int32),
        lambda y: y.numpy(),
        lambda y: [y],
    ],
    ids=["too few", "too many", "no channels", "flat", "five dimensions", "integers", "array", "list"],
)
@pytest.mark.parametrize("use", ["adjoint", "pinv", "reconstruct"])
def test_what_is_no_measurement(operator: MeasurementOperator, spoil: Callable[[Tensor], Any], use: str) -> None:
    y = spoil(operator(torch.rand(1, 1, *SIZE)))
    if use == "reconstruct":
        one_line(lambda: PseudoInverse().reconstruct(y, operator))
    else:
        one_line(lambda: getattr(operator, use)(y))


@pytest.mark.parametrize("words", ["block:8", "structured:8", "column"])
def test_the_other_precision_is_named(words: str) -> None:
    operator = make_operator(words, 0.4, SIZE)
    x = torch.rand(1, 1, *SIZE, dtype=torch.float64)
    y = operator(x.float()).double()
    one_line(lambda: operator(x), "torch.float64", "torch.float32", "operator.double()")
    one_line(lambda: COASTModule(COASTConfig(layers=1)).reconstruct(y, operator), "measurements are torch.float64")
    one_line(lambda: build_method("fista", 0.4).reconstruct(y, operator), "measurements are torch.float64")
    assert operator.double()(x).dtype == torch.float64


@pytest.mark.parametrize("size", [64, 64.0, (64,), (64, 64, 3), (64.5, 64), "64", None, (0, 8), (8, -1), ("8", "8")])
@pytest.mark.parametrize("words", [*OPERATORS, "radon:20"])
def test_what_is_no_image_size(words: str, size: Any) -> None:
    one_line(lambda: make_operator(words, 0.4, size), "image_size is")


@pytest.mark.parametrize("size", [64, (64,), (64.5, 64), None])
def test_what_is_no_image_size_for_the_classes(size: Any) -> None:
    matrix = torch.rand(8, 64)
    one_line(lambda: BlockOperator(matrix, size), "image_size is")
    one_line(lambda: COASTModule(COASTConfig(layers=1)).default_operator(0.1, size), "image_size is")


@pytest.mark.parametrize("name", ["fista", "tv", "linear", "omp", "coast"])
@pytest.mark.parametrize("wrong", [64, (64, 64), torch.rand(8, 64), None], ids=["size", "pair", "matrix", "nothing"])
def test_what_is_no_operator(name: str, wrong: Any) -> None:
    method: Reconstructor = COASTModule(COASTConfig(layers=1)) if name == "coast" else build_method(name, 0.4)
    one_line(lambda: method.reconstruct(torch.rand(1, 1, 4, 8), wrong), "make_operator")


# Results that are not finite


class Breaks(Reconstructor):
    """Gives a value that no picture has, in one image of the batch."""

    def __init__(self, value: float) -> None:
        self.value = value

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        x = operator.pinv(y)
        x[0, 0, 0, 0] = self.value
        return Solution(x)

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_is_an_error(value: float) -> None:
    operator = make_operator("block:8", 0.4, SIZE)
    y = operator(torch.rand(3, 1, *SIZE))
    one_line(lambda: Breaks(value).reconstruct(y, operator), "not finite", "1 of 3 images")
    network = COASTModule(COASTConfig(layers=2, features=4))
    next(network.network.parameters()).data.fill_(value)
    one_line(lambda: network.reconstruct(y, operator), "COASTModule", "3 of 3")
    one_line(lambda: network.reconstruct(y, operator, return_all=True), "COASTModule")


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ddnm"}))
def test_measurements_that_are_not_finite_give_no_picture(name: str) -> None:
    operator = make_operator("block:8", 0.4, SIZE)
    y = operator(torch.rand(1, 1, *SIZE))
    y[0, 0, 0, 0] = math.nan
    one_line(lambda: build_method(name, 0.4).reconstruct(y, operator))


# The smallest images


@pytest.mark.parametrize("words", ["block:8", "structured:4", "column", "pixel", "fourier", "transform2d", "radon"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (8, 8)])
def test_every_method_takes_the_smallest_images_or_says_so(words: str, size: tuple[int, int]) -> None:
    x = torch.linspace(0.1, 0.9, math.prod(size)).view(1, 1, *size)
    refused = set()
    for name in sorted(set(METHODS) - {"ddnm"}):
        method = build_method(name, 0.4)
        method = build_method(f"{name}:iterations=5", 0.4) if hasattr(method, "iterations") else method
        method = build_method(f"{name}:epochs=5", 0.4) if hasattr(method, "epochs") else method
        for ratio in (0.1, 1.0):
            operator = make_operator(words, ratio, size)
            try:
                assert method.reconstruct(operator(x), operator).shape == x.shape
            except UserError as error:
                refused.add((name, "not finite" in str(error)))
    by_atoms = set() if words in ("block:8", "column") else {("omp", False), ("stomp", False)}
    by_blocks = {("linear", False)} if words == "column" else set()
    by_denoiser = {("pnp", False)} if min(size) < 8 else set()
    by_windows = {("clomp_warm", False)} if min(size) < 3 else set()
    assert refused == by_atoms | by_blocks | by_denoiser | by_windows


def test_coefficients_learning_on_a_small_image_of_full_image_sampling() -> None:
    x = torch.linspace(0.1, 0.9, 64).view(1, 1, 8, 8)
    for seed in range(4):
        operator = make_operator("transform2d", 0.5, (8, 8), seed)
        error = (build_method("clomp_warm", 0.5).reconstruct(operator(x), operator) - x).square().mean()
        assert error < 0.1**2


def test_a_wavelet_that_is_not_orthonormal_is_refused() -> None:
    one_line(lambda: Wavelet2d("dmey"), "dmey", "no orthogonal wavelet")
    one_line(lambda: build_method("fista:transform=dmey", 0.4), "dmey")
