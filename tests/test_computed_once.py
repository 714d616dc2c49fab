"""What is computed once for a matrix, and settings of torch that hold for a while: both must end when they should."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cs_models.errors import UserError
from cs_models.networks.learned_sampling.csnet_plus import CSNetPlusConfig, CSNetPlusModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.sodas_net import SODASNetConfig, SODASNetModule
from cs_models.operators import BlockOperator, Sampling
from cs_models.operators.bank import SamplingBank
from cs_models.operators.remembered import Remembered
from cs_models.precision import forbid_tf32, no_tf32
from cs_models.training.options import Training

ONE_RATIO = Sampling(ratios=(0.25,), block_size=8)


def test_a_value_is_computed_once_until_its_tensors_change() -> None:
    calls: list[int] = []
    total: Remembered[float] = Remembered()

    def value(tensor: torch.Tensor) -> float:
        return total((tensor,), lambda: calls.append(1) or float(tensor.sum()))  # type: ignore[func-returns-value]

    tensor = torch.ones(3)
    assert [value(tensor), value(tensor)] == [3, 3]
    assert len(calls) == 1
    tensor.mul_(2)
    assert value(tensor) == 6
    assert value(tensor.clone()) == 6
    assert len(calls) == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_copies_know_nothing(copied: Any) -> None:
    tensor, total = torch.ones(3), Remembered[float]()
    total((tensor,), lambda: 3.0)
    assert copied(total)((tensor,), lambda: 4.0) == 4


def test_a_network_of_one_matrix_compares_it_anew_when_it_changes() -> None:
    module = SODASNetModule(SODASNetConfig(layers=1, features=4), UnfoldingTraining(ONE_RATIO))
    operator = module.default_operator(0.25, (16, 16))
    module.check_operator(operator)
    other = BlockOperator(operator.matrix.clone(), (16, 16))
    module.check_operator(other)
    other.matrix[0, 0] += 1
    with pytest.raises(UserError, match="one matrix"):
        module.check_operator(other)
    source = operator.spec["sha256"]
    operator.matrix[0, 0] += 1  # that of the checkpoint, which `default_operator` hands out
    assert module.default_operator(0.25, (16, 16)).spec["sha256"] != source


def test_a_learned_matrix_is_compared_anew_when_training_moves_on() -> None:
    module = CSNetPlusModule(CSNetPlusConfig(features=4, blocks=1), Training(ONE_RATIO))
    operator = module.default_operator(0.25, (16, 16))
    module.check_operator(operator)
    with torch.no_grad():
        next(module.network.sensing.sampling.parameters()).add_(0.1)  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match="the sampling that it learned"):
        module.check_operator(operator)
    module.check_operator(module.default_operator(0.25, (16, 16)))


@pytest.mark.parametrize("kind", ["block", "structured", "fourier"])
def test_training_steps_share_an_operator_but_for_what_they_draw(kind: Any) -> None:
    bank = SamplingBank(Sampling(ratios=(0.25,), kind=kind, block_size=8, noise_sigma=10))
    first, second = bank.draw(0, (16, 16)), bank.draw(1, (16, 16))
    assert first.noise_sigma != second.noise_sigma
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(first(x), second(x)) == (kind != "structured")
    if kind != "fourier":
        assert first.rows is second.rows  # type: ignore[attr-defined, union-attr]


@pytest.fixture
def _torch_as_it_was() -> Iterator[None]:
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


@pytest.mark.usefixtures("_torch_as_it_was")
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_tf32_is_off_for_a_while_or_for_good(products: str) -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision(products)
    with no_tf32():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == products
    forbid_tf32()
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("_torch_as_it_was")
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="an older torch has no such setting")
def test_settings_by_torchs_newer_names_are_kept() -> None:
    conv = torch.backends.cudnn.conv
    conv.fp32_precision = "ieee"  # convolutions alone: reading the older names is an error from here on
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    try:
        with no_tf32():
            assert "tf32" not in (conv.fp32_precision, matmul.fp32_precision)
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "tf32")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
