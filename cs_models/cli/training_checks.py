"""Checks of a training's settings that Lightning makes late, in many words, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning import Trainer

from cs_models.errors import UserError
from cs_models.settings import check_range
from cs_models.training.module import ReconstructionModule
from cs_models.training.trainer import check_precision
from datamodules.patches import PatchDataModule

# Of Lightning's trainer, the least value of each; it takes many smaller ones for something else or fails much later.
LEAST = {
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "num_nodes": 1, "max_epochs": -1, "min_epochs": 0,
    "max_steps": -1, "min_steps": 0, "limit_train_batches": 0, "limit_val_batches": 0, "overfit_batches": 0,
    "num_sanity_val_steps": -1, "log_every_n_steps": 0, "gradient_clip_val": 0,
}  # fmt: skip
SPAWNING = ("spawn", "fork", "notebook")
WITH_AN_END = ("one_cycle", "cosine")


def check_trainer(trainer: Any, data: Any) -> None:
    """Look through the settings of the trainer, before it and the data exist.

    Args:
        trainer: its settings by name.
        data: those of `PatchDataModule`.

    Raises:
        UserError: for a value that no training can have, or that does not go together with the others.
    """
    for name, least in LEAST.items():
        value = trainer.get(name)
        if isinstance(value, int | float):
            check_range(f"trainer.{name}", value, least)
    _check_devices(trainer.get("devices"), torch.cuda.device_count() if _on_gpu(trainer.get("accelerator")) else 0)
    check_precision(trainer.get("precision"))
    strategy = trainer.get("strategy")
    if isinstance(strategy, str) and any(word in strategy.lower() for word in SPAWNING):
        raise UserError(f"trainer.strategy {strategy} copies the training into its processes; use ddp")
    if not trainer.get("fast_dev_run"):
        _check_validation(trainer, data)


def _on_gpu(accelerator: Any) -> bool:
    return accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())


def _check_devices(devices: Any, gpus: int) -> None:
    """Refuse devices that there are not: numbers of GPUs, or so many processes on a CPU, where `gpus` is 0."""
    if isinstance(devices, str) and devices.strip().lstrip("-").isdecimal():
        devices = int(devices)
    if devices is None or devices == "auto" or (isinstance(devices, int) and devices >= 1):
        return
    if gpus and devices == -1:
        return
    numbers = devices.split(",") if isinstance(devices, str) else devices
    known = set(map(str, range(gpus)))
    if isinstance(numbers, Sequence) and numbers and {str(number).strip() for number in numbers} <= known:
        return
    expected = f"a number, -1 for all, or some of 0 to {gpus - 1}" if gpus else "a number of processes, at least 1"
    raise UserError(f"trainer.devices {devices}: expected {expected}")


def _check_validation(trainer: Any, data: Any) -> None:
    """Refuse intervals of validation that no epoch has; Lightning does so when the data was read."""
    interval, limit = trainer.get("val_check_interval"), trainer.get("limit_train_batches")
    if interval is None or isinstance(interval, str | dict | timedelta):
        return
    if isinstance(interval, float) and not 0 < interval <= 1:
        raise UserError(f"trainer.val_check_interval {interval}: a share of an epoch lies above 0 and up to 1")
    check_range("trainer.val_check_interval", interval, 0 if isinstance(interval, float) else 1)
    batches = data.get("batches_per_epoch")
    batches = min(batches, limit) if isinstance(limit, int) else batches
    if isinstance(interval, int) and interval > batches and trainer.get("check_val_every_n_epoch") is not None:
        raise UserError(
            f"trainer.val_check_interval {interval} is longer than an epoch of {batches} batches; give a smaller one, "
            "or check_val_every_n_epoch null to count over the epochs"
        )


def check_together(method: ReconstructionModule, trainer: Trainer, data: PatchDataModule) -> None:
    """Whether network, trainer and data go together, before any data is read.

    Raises:
        UserError: for a schedule that needs an end and has none, for images of other channels than the network's, and
            for a loss that needs what the data does not have.
    """
    options = method.training_options
    schedule = options.schedule
    if schedule in WITH_AN_END and trainer.max_steps == -1 and trainer.max_epochs == -1:
        raise UserError(f"the schedule {schedule} needs an end: give --trainer.max_steps or max_epochs")
    ours = type(method).__module__.startswith("cs_models.")
    takes, has = getattr(method.config, "channels", 1), 3 if data.channels == "rgb" else 1
    if ours and takes != has:
        words = {1: "luminance", 3: "rgb"}
        raise UserError(f"{method.name} takes {words[takes]} here, and data.channels is {words[has]}; make them equal")
    if data.measurements is not None and options.supervision == "ground_truth":
        raise UserError(
            "data.measurements has no images; set training.supervision to splitting, measurements, equivariant or sure"
        )
    if data.measurements is None and options.supervision == "sure" and not options.sampling.noise_sigma:
        raise UserError("training.supervision sure is for noisy measurements; give training.sampling.noise_sigma")
