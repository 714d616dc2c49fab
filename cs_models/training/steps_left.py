"""The progress of a whole training in one line."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from cs_models.progress import Progress


class StepsLeft(ProgressBar):
    """Optimiser steps of the whole training and the time that is left for them, with loss and validation.

    Lightning's own bar is one of an epoch, and fills a log file with thousands of copies of itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hidden = False
        self._bar = Progress(None, hidden=True)

    def disable(self) -> None:
        """Show nothing, as in all processes but the first."""
        self._hidden = True

    def enable(self) -> None:
        """Show the line again."""
        self._hidden = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        total = int(steps) if math.isfinite(steps) and steps > 0 else None
        self._bar = Progress(total, "training", "steps", done=trainer.global_step, hidden=self._hidden)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar.due:  # reading a number waits for the device that computes it
            metrics = trainer.progress_bar_metrics
            self._bar.note(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            total = sum(trainer.num_val_batches)
            self._bar = Progress(int(total), "validating", "images", hidden=self._hidden)
        else:
            self._bar.about("validating")

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate":
            self._bar.update()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar.about("training")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._bar.close()
