"""Too little memory is told in one line that says whose, wherever it shows."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch

from cs_models.cli import train
from cs_models.cli.evaluate import main
from cs_models.errors import short_of_memory
from tests.conftest import REPOSITORY
from tests.test_train import arguments

HOST = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"


@pytest.mark.parametrize(
    ("error", "owner"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "the GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "the GPU"),
        (RuntimeError(f"[enforce fail at alloc_cpu.cpp:118] err == 0. {HOST}"), "this machine"),
        (MemoryError(), "this machine"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError(HOST), None),
    ],
)
def test_memory_that_is_too_small_is_known(error: Exception, owner: str | None) -> None:
    assert short_of_memory(error) == owner


PLACES = (
    "cs_models.evaluation.plan.make_operator",
    "cs_models.evaluation.plan.Candidate.to",
    "cs_models.evaluation.loop.measure",
    "cs_models.evaluation.plan.Candidate.prepare",
    "cs_models.solvers.linear.PseudoInverse._solve",
)


@pytest.mark.parametrize("place", PLACES)
def test_an_evaluation_that_needs_too_much_is_one_line(
    place: str, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(place, fail)
    words = ["--methods", "pinv", "--datasets", str(tiny_images), "--ratios", "0.1", "--out", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "needs more memory than the GPU has; try" in error


@pytest.mark.parametrize("place", ["Stage.__init__", "ISTANetPPModule.training_loss"])
def test_a_training_that_needs_too_much_is_one_line(
    place: str, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise RuntimeError(HOST)

    monkeypatch.setattr(f"cs_models.networks.unfolding.ista_net_pp.{place}", fail)
    assert train.main(arguments(REPOSITORY / "configs/train/ista_net_pp.yaml", tiny_images, tmp_path)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the training needs more memory than this machine has; lower --data.batch_size")
