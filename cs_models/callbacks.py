"""What training writes besides Lightning's own checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import SaveConfigCallback

from cs_models.checkpoints import save_checkpoint
from cs_models.reconstruction import ReconstructionModule


class ExportCheckpoint(pl.Callback):
    """Keeps ``model.safetensors``, the file for `eval.py`, beside the logs: after each validation and at the end."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self._export(trainer, pl_module)
        if path is not None:
            print(f"weights for eval.py: {path}")

    def _export(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Path | None:
        folder = trainer.log_dir or trainer.default_root_dir
        if not trainer.is_global_zero or not isinstance(pl_module, ReconstructionModule):
            return None
        pl_module.provenance |= {"steps": trainer.global_step, "seconds": round(self._seconds(), 1)}
        return save_checkpoint(pl_module, Path(folder) / "model.safetensors")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started

    _earlier = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict["seconds"]


class Throughput(pl.Callback):
    """Logs patches a second over all processes, every so many batches."""

    def __init__(self, every_n_batches: int = 50) -> None:
        """
        Args:
            every_n_batches: length of the interval.
        """
        self.every_n_batches = every_n_batches

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._patches = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._patches += len(batch) * trainer.world_size
        if (batch_idx + 1) % self.every_n_batches == 0:
            now = time.monotonic()
            pl_module.log("train/patches_per_second", self._patches / (now - self._since))
            self._since, self._patches = now, 0


class LogConfig(SaveConfigCallback):
    """Gives the configuration in full to the logger, besides the `config.yaml` that Lightning writes."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
