"""What each command imports before it needs it; the times are `benchmarks/startup.py`'s."""

from __future__ import annotations

import gc
import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cs_models.cli.importing import importing
from cs_models.evaluation import processes
from cs_models.launched import launched
from tests.conftest import REPOSITORY

HELPERS = """
import contextlib, io, sys

def absent(*names):
    found = sorted({name for name in names if name in sys.modules})
    assert not found, found

def said(main, words, status):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            ended = main(words.split())
        except SystemExit as exit:
            ended = exit.code or 0
    assert ended == status, (words, ended, printed.getvalue())
    return printed.getvalue()
"""

BEFORE_TORCH = """
import eval as evaluate, train
from cs_models.cli import main

heavy = ("torch", "scipy", "matplotlib", "skimage", "pytorch_lightning", "wandb", "diffusers", "timm", "torchvision")
assert "--methods" in said(evaluate.main, "--help", 0)
listed = said(evaluate.main, "--list", 0)
assert "clomp" in listed and "Set11" in listed and "r_coast" in listed
absent(*heavy)
for words, hint in (
    ("--methods clomp:epoch=3 --datasets bundled --ratios 0.1", "did you mean 'epochs'?"),
    ("--methods pinv:a=3 --datasets bundled --ratios 0.1", "has no settings"),
    ("--methods clmp --datasets bundled --ratios 0.1", "did you mean 'clomp'?"),
    ("--methods r_cost --datasets bundled --ratios 0.1", "did you mean 'r_coast'?"),
    ("--methods pinv --datasets bundeld --ratios 0.1", "did you mean 'bundled'?"),
    ("--methods pinv --image no_such.png --ratios 0.1", "no image 'no_such.png'"),
    ("--metods pinv", "did you mean 'methods'?"),
    ("--config training_fre", "error: configuration not found: training_fre; did you mean 'training_free'?"),
):
    assert hint in said(evaluate.main, words, 2), words
for words, hint in (
    ("fit --config r_cost", "did you mean 'r_coast'?"),
    ("fitt --config r_coast", "did you mean 'fit'?"),
    ("--config r_coast --trainer.max_step 5", "did you mean 'max_steps'?"),
    ("--config r_coast --data.bach_size 4", "did you mean 'batch_size'?"),
    ("--config r_coast --model.init_args.training.learning_rat 1", "did you mean 'learning_rate'?"),
):
    assert hint in said(train.main, words, 2), words
assert "did you mean 'eval'?" in said(main.main, "evl", 2)
absent(*heavy)
"""

BEFORE_THE_REST = """
from pathlib import Path
from cs_models import load

light = ("pytorch_lightning", "lightning_fabric", "torchmetrics", "torchvision", "diffusers", "wandb", "timm",
         "scipy.stats", "torch._dynamo")
load("r_coast")
from datamodules.catalog import load_set
load_set(sys.argv[1])[0]
absent("skimage", "matplotlib", *light)
from cs_models.cli import evaluate
from cs_models.evaluation import loop, measurements, plan
from cs_models.evaluation.report import cards, merge, tables
absent("skimage", "matplotlib", *light)
out = Path(sys.argv[1])
words = "--image {out}/a.png --channels luminance --ratios 0.1 --device cpu --out {out} --methods pinv,r_coast"
assert "r_coast" in said(evaluate.main, words.format(out=out), 0)
absent(*light)
assert "skimage" in sys.modules and "matplotlib" in sys.modules and (out / "figures/images_image.png").exists()
"""


def run(program: str, *words: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", HELPERS + program, *words], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_help_lists_and_mistakes_come_before_torch() -> None:
    run(BEFORE_TORCH)


def test_loading_and_evaluating_on_one_device_import_little(tiny_images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((tiny_images / "0.png").read_bytes())
    run(BEFORE_THE_REST, str(tmp_path))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False), ({"RANK": "0"}, True), ({"SLURM_NTASKS": "2"}, True), ({"LOCAL_RANK": "1"}, True),
        ({"LT_DEVICES": "2"}, True), ({"OMPI_COMM_WORLD_SIZE": "2"}, True), ({"SLURMY": "1", "PRANK": "1"}, False),
        ({"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_MCA_btl": "self", "MV2_DEBUG": "1"}, False), ({"PMI_RANK": "0"}, True),
    ],
)  # fmt: skip
def test_a_launcher_is_seen(environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", environment)
    assert launched() == expected


def test_several_devices_and_launched_processes_are_fabrics(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from lightning_fabric import Fabric

    monkeypatch.setattr("os.environ", {})
    cpu = torch.device("cpu")
    assert isinstance(processes.processes(cpu, 1), processes.OneProcess)
    assert isinstance(processes.processes(cpu, 2), Fabric)
    monkeypatch.setattr("os.environ", {"LT_PRECISION": "32"})
    assert isinstance(processes.processes(cpu, 1), Fabric)


def test_lightnings_advice_on_tf32_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from lightning_fabric.accelerators import cuda
    from lightning_utilities.core import rank_zero

    name = "lightning_fabric.utilities.rank_zero"
    monkeypatch.setattr(rank_zero, "log", logging.getLogger(name))
    monkeypatch.setattr(rank_zero.log, "filters", [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a GPU")
    advise = cuda._check_cuda_matmul_precision.__wrapped__
    with caplog.at_level(logging.INFO, name):
        advise(torch.device("cuda"))
        assert "Tensor Cores" in caplog.text
        caplog.clear()
        processes.processes(torch.device("cpu"), 2)
        advise(torch.device("cuda"))
    assert not caplog.text


def test_garbage_is_collected_again_after_an_import() -> None:
    with importing():
        assert not gc.isenabled()
        with pytest.raises(ModuleNotFoundError), importing():
            importlib.import_module("no_such_package")
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_another_has_frozen_stays_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    assert frozen  # by the start of the tests
    (tmp_path / "of_this_test.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_this_test", raising=False)
    with importing():
        importlib.import_module("of_this_test")
    assert gc.get_freeze_count() == frozen
