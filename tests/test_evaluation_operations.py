"""Operations are counted as torch's own counter does it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cs_models import load
from cs_models.evaluation.operations import CountOperations


def test_a_network_of_the_zoo() -> None:
    network = load("ista_net_pp")
    operator = network.default_operator(0.1, (66, 66))
    y = operator(torch.rand(1, 1, 66, 66))
    network.reconstruct(y, operator)  # what is computed of the matrix once
    with CountOperations() as ours:
        network.reconstruct(y, operator)
    with FlopCounterMode(display=False) as theirs:
        network.reconstruct(y, operator)
    assert ours.total == theirs.get_total_flops() > 0


def test_operations_that_consist_of_others() -> None:
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.rand(2, 5, 8)
    with CountOperations() as ours:
        layer(x)
    with FlopCounterMode(display=False) as theirs:
        layer(x)
    assert ours.total == theirs.get_total_flops() > 0
