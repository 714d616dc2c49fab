"""Muon: orthogonal steps for matrices and convolutions, AdamW's for all else."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import pytest
import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.training.lightning import LightningTraining
from cs_models.training.muon import QUINTIC, Muon, is_matrix, orthogonal


def weights() -> list[nn.Parameter]:
    """Two convolutions alike, a tall matrix, and what is Adam's: a bias, a scalar, a convolution to one channel."""
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(8, 8, 3, 3), (8, 8, 3, 3), (12, 5), (8,), (), (1, 8, 3, 3)]
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def step(optimiser: torch.optim.Optimizer, ours: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in ours:
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimiser.step()


@pytest.mark.parametrize("shape", [(2, 8, 72), (3, 40, 6), (1, 16, 16)])
def test_steps_are_orthogonal(shape: tuple[int, ...]) -> None:
    """All singular values become about 1, the singular vectors stay."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ found @ v.mT
    assert (rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4
    theirs = torch.stack([zeropower_via_newtonschulz(one, 5, [QUINTIC], dtype=torch.float32) for one in matrices])
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-3)


def test_no_gradient_is_no_step() -> None:
    assert orthogonal(torch.zeros(1, 4, 9)).abs().max() == 0
    ours = weights()
    before = [weight.detach().clone() for weight in ours]
    step(Muon(ours, 0.01), ours[1:4], 1)
    assert [torch.equal(*pair) for pair in zip(ours, before, strict=True)] == [True, False, False, False, True, True]


def test_each_weight_has_its_rule() -> None:
    """By hand for a convolution, which its like does not change; the others as AdamW has them."""
    ours, theirs = weights(), weights()
    adam = torch.optim.AdamW([weight for weight in theirs if not is_matrix(weight)], 0.01, weight_decay=0.1)
    muon = Muon(ours, 0.01, 0.1)
    expected, momentum = theirs[0].detach().clone(), torch.zeros(8, 72)
    for seed in (1, 2):
        step(muon, ours, seed)
        step(adam, theirs, seed)
        gradient: Tensor = theirs[0].grad.flatten(1)  # type: ignore[union-attr]
        momentum = 0.95 * momentum + 0.05 * gradient
        moved = orthogonal((0.05 * gradient + 0.95 * momentum)[None])[0]
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 72**0.5 * moved.view(8, 8, 3, 3)
    torch.testing.assert_close(ours[0].detach(), expected)
    for one, other in zip(ours[3:], theirs[3:], strict=True):
        assert torch.equal(one, other)


def test_a_loaded_state_goes_on() -> None:
    whole, halves = weights(), weights()
    optimiser, first = Muon(whole, 0.01), Muon(halves, 0.01)
    for seed in range(4):
        step(optimiser, whole, seed)
    for seed in range(2):
        step(first, halves, seed)
    second = Muon(halves, 1.0)
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        step(second, halves, seed)
    assert all(torch.equal(*pair) for pair in zip(whole, halves, strict=True))


def test_schedules_reach_every_weight() -> None:
    ours = weights()
    muon = Muon(ours, 0.01)
    step(muon, ours, 1)
    torch.optim.lr_scheduler.LambdaLR(muon, lambda _: 0.0)
    before = [weight.detach().clone() for weight in ours]
    step(muon, ours, 2)
    assert all(torch.equal(*pair) for pair in zip(ours, before, strict=True))


def test_shards_of_matrices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    training = LightningTraining(COASTModule(COASTConfig(1, 4), UnfoldingTraining(optimizer="muon")))
    monkeypatch.setattr("cs_models.training.lightning.FSDPModule", nn.Module)
    with pytest.raises(UserError, match="needs whole matrices"):
        training.configure_optimizers()


@pytest.mark.parametrize(("now", "expected"), [("adam", None), ("muon", "optimizer = adam, which holds until its end")])
def test_checkpoints_of_before_the_choice_have_adam(now: Literal["adam", "muon"], expected: str | None) -> None:
    training = LightningTraining(COASTModule(COASTConfig(1, 4), UnfoldingTraining(optimizer=now)))
    header = training.method.header()
    del header["training"]["optimizer"]
    training.on_load_checkpoint({"cs_models": header})
    with nullcontext() if expected is None else pytest.raises(UserError, match=expected):
        training.on_train_start()
