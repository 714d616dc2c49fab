"""What is kept for later may be made in inference mode, in which Lightning validates, and allows gradients after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cs_models.operator_names import OPERATORS
from cs_models.operators import BlockOperator, MeasurementOperator, Sampling, make_operator
from cs_models.operators.bank import SamplingBank
from cs_models.operators.matrices import gaussian_matrix
from cs_models.operators.whitening import as_trained
from cs_models.solvers.linear import LinearEstimate
from cs_models.solvers.pnp import DCTDenoiser
from cs_models.transforms.dct import DCT2d, OrthonormalTransform, dct_matrix
from cs_models.transforms.wavelets import Wavelet2d, _around, _filters

SIZE = 20, 20  # blocks of 8 are cut by the border
KINDS = [f"{name}:8" if name in ("block", "structured") else name for name in OPERATORS]


def gradient_after_inference(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of ``|f(x)|^2``, after f ran in inference mode."""
    with torch.inference_mode():
        function(x)
    x = x.clone().requires_grad_()
    function(x).abs().square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0
    return x.grad


@pytest.mark.parametrize("words", KINDS)
def test_operators(words: str) -> None:
    operator = make_operator(words, 0.3, SIZE)
    x = torch.rand(1, 1, *SIZE)
    for function, value in ((operator, x), (operator.adjoint, operator(x)), (operator.pinv, operator(x))):
        gradient_after_inference(function, value)


def _forget() -> None:
    for known in (dct_matrix, _filters, _around):
        known.cache_clear()


@pytest.mark.parametrize("transform", [Wavelet2d("db2", 2), DCT2d()])
def test_transforms(transform: OrthonormalTransform) -> None:
    _forget()
    x = torch.rand(1, 1, *SIZE)
    for function in (transform.analysis, transform.synthesis):
        torch.testing.assert_close(gradient_after_inference(function, x), 2 * x)  # since they are orthonormal


def test_a_denoiser() -> None:
    _forget()
    gradient_after_inference(lambda x: DCTDenoiser()(x, 0.1), torch.rand(1, 1, *SIZE))


def test_an_own_matrix_and_the_linear_estimate() -> None:
    operator = BlockOperator(gaussian_matrix(12, 64, 0).float(), SIZE, noise_sigma=0.01)

    def trained(y: Tensor) -> Tensor:
        y, ready = as_trained(y, operator)
        return ready.pinv(y)

    y, linear = operator(torch.rand(1, 1, *SIZE)), LinearEstimate()
    gradient_after_inference(trained, y)
    gradient_after_inference(lambda y: linear._solve(y, operator).x, y)


@pytest.mark.parametrize("kind", ["block", "structured", "radial"])
def test_operators_of_a_training(kind: str) -> None:
    bank = SamplingBank(Sampling(ratios=(0.3,), kind=kind, block_size=8))  # type: ignore[arg-type]

    def projected(x: Tensor) -> Tensor:
        operator: MeasurementOperator = bank.draw(0, SIZE)
        return operator.normal(x)

    gradient_after_inference(projected, torch.rand(1, 1, *SIZE))
