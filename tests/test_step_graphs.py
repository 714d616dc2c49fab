"""Recorded training steps, with a recorder on the CPU that holds arguments to what CUDA graphs ask of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.operators import Sampling
from cs_models.operators.base import MatrixOperator
from cs_models.training.lightning import LightningTraining
from cs_models.training.options import Training
from cs_models.training.step_graphs import StepGraphs, StepLoss
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import MODELS, load_checkpoint, model_class
from datamodules.patches import PatchDataModule
from tests.small_networks import make_network

SAMPLING = Sampling(ratios=(0.25, 0.5), block_size=8, matrices_per_ratio=3)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records nothing, and repeats a step for arguments like those of the example."""

    def record(step: StepLoss, example: tuple[Tensor, ...], **_: Any) -> Callable[..., Tensor]:
        assert not torch.is_autocast_cache_enabled()

        def repeat(*arguments: Tensor) -> Tensor:
            for ours, theirs in zip(example, arguments, strict=True):
                assert (ours.shape, ours.requires_grad) == (theirs.shape, theirs.requires_grad)
            return step(*arguments)

        return repeat

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("name", [name for name in MODELS if model_class(name).any_operator])
def test_recorded_steps_have_the_same_gradients(name: str) -> None:
    method = make_network(name)
    ratios = method.training_options.sampling.ratios
    graphs = StepGraphs(method, torch.rand(2, 1, 16, 16))
    for seed, ratio in enumerate(reversed(ratios)):
        operator = method.default_operator(ratio, (16, 16), seed)
        assert isinstance(operator, MatrixOperator)
        x = torch.rand(2, 1, 16, 16)
        y = operator(x)
        results = []
        for loss in (method.training_loss(x, y, operator), graphs.loss(x, y, operator)):
            method.network.zero_grad()
            loss.backward()
            results.append([loss.detach(), *(one.grad for one in method.network.parameters())])
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def trained(folder: Path, graphs: bool, sampling: Sampling = SAMPLING, **options: Any) -> COASTModule:
    torch.manual_seed(0)
    training = UnfoldingTraining(sampling, "muon", 1e-2, log_loss=True, cuda_graphs=graphs)
    method = COASTModule(COASTConfig(2, 4, modulation="rfmu"), training)
    crop = 2 * sampling.block_size
    data = PatchDataModule(train_sets=[str(folder)], crop_size=crop, batch_size=2, validation_sets=[])
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision="bf16-mixed", **options,
    )  # fmt: skip
    trainer.fit(LightningTraining(method), data)
    return method


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(ratios=(0.02, 0.05), block_size=32, matrices="learned")])
def test_recorded_trainings_give_the_same_weights(
    sampling: Sampling, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(tiny_images, graphs=False, sampling=sampling).state_dict()
    monkeypatch.setattr(LightningTraining, "_check_recordable", lambda *_: None)
    found = trained(tiny_images, graphs=True, sampling=sampling).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_cannot_be_recorded_is_refused(tiny_images: Path) -> None:
    with pytest.raises(UserError, match="this training runs on cpu; set it false"):
        trained(tiny_images, graphs=True)
    with pytest.raises(UserError, match="accumulate_grad_batches 1"):
        trained(tiny_images, graphs=True, accumulate_grad_batches=2)
    with pytest.raises(UserError, match="idm cannot be trained with training"):
        model_class("idm")(training=Training(Sampling(ratios=(0.1,)), cuda_graphs=True))


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": Sampling(kind="pixel")},
        {"sampling": Sampling(noise_sigma=5.0)},
        {"supervision": "equivariant"},
        {"random_iterations": True},
        {"compile": True, "compile_mode": "reduce-overhead"},
    ],
)
def test_steps_that_differ_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cuda_graphs"):
        UnfoldingTraining(**change, cuda_graphs=True)


def test_weights_are_trained_on_where_nothing_can_be_recorded(tmp_path: Path) -> None:
    method = COASTModule(COASTConfig(2, 4), UnfoldingTraining(SAMPLING, cuda_graphs=True))
    assert not load_checkpoint(save_checkpoint(method, tmp_path / "net.safetensors")).training_options.cuda_graphs
