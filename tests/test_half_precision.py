"""Training in float16: overflow is passed over and counted, and stops the training only where it does not end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from cs_models.cli import train
from tests.conftest import REPOSITORY
from tests.test_train import CONFIGS, SMALL, arguments

DURABLE = {"class_path": "cs_models.training.checkpoint_io.DurableCheckpointIO"}


def half(init_scale: float, backoff_factor: float) -> list[str]:
    """Arguments for float16 on the CPU, where a scale of the loss that is too large makes gradients overflow."""
    scaler = {"device": "cpu", "init_scale": init_scale, "backoff_factor": backoff_factor}
    plugin = {
        "class_path": "pytorch_lightning.plugins.MixedPrecision",
        "init_args": {
            "precision": "16-mixed",
            "device": "cpu",
            "scaler": {"class_path": "torch.amp.GradScaler", "init_args": scaler},
        },
    }
    return [
        f"--trainer.plugins={json.dumps([plugin, DURABLE])}",
        "--trainer.precision=auto",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=0",
    ]


def small_idm(folder: Path) -> list[str]:
    unet = yaml.safe_load((REPOSITORY / "configs/train/idm_small.yaml").read_text())["model"]["init_args"]["network"]
    small = {"model": {"init_args": {"network": {"pretrained": None, "unet": unet["unet"], "steps": 1}}}}
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    return ["--config", str(folder / "small.yaml"), "--data.crop_size=32"]


@pytest.mark.parametrize("name", ["coast", "idm"])
def test_overflow_is_passed_over_and_counted(name: str, tiny_images: Path, tmp_path: Path) -> None:
    (config,) = [path for path in CONFIGS if path.stem == name]
    assert yaml.safe_load(config.read_text())["trainer"]["precision"] == "16-mixed"
    small = small_idm(tmp_path) if name == "idm" else [*SMALL, "--model.init_args.network.layers=2"]
    words = arguments(config, tiny_images, tmp_path, *small)
    words = [word for word in words if not word.startswith("--trainer.precision")]
    # Two overflows, after which the scale is 10,000.
    assert train.main([*words, *half(1e30, 1e-13), "--trainer.max_steps=4"]) == 0
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert 1 <= last["skipped_steps"] <= 3
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    with open(tmp_path / "run/metrics.csv") as file:
        counted = [float(row["train/skipped_steps"]) for row in csv.DictReader(file) if row["train/skipped_steps"]]
    assert counted == list(range(1, last["skipped_steps"] + 1))


def test_overflow_without_end_stops_training(
    tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = [path for path in CONFIGS if path.stem == "coast"]
    words = arguments(config, tiny_images, tmp_path, *SMALL, "--model.init_args.network.layers=2")
    words = [word for word in words if not word.startswith("--trainer.precision")]
    words += ["--model.init_args.training.most_skips=3", "--trainer.max_steps=9"]
    assert train.main([*words, *half(1e30, 0.99)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: the last 3 steps, up to step 2, had no finite loss or gradients")
    assert "comes from" in last
