"""What training writes besides Lightning's own checkpoints, and how it stops."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError

from cs_models.launched import TERMINATED
from cs_models.locks import holding
from cs_models.training.agreement import Agreement
from cs_models.training.lightning import LightningTraining, NonFiniteLossError
from cs_models.training.loggers import ContinuedCSVLogger, log_weights
from cs_models.training.weights import whole_tensors, write_tensors
from datamodules.patches import PatchBatches, ResumableLoader


def run_folder(trainer: pl.Trainer) -> Path:
    """The folder of a training's own files, that of its logs; to be asked for in every process at once.

    W&B's logger gives the same folder to all its runs, so there it is that of the run's checkpoints.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if not isinstance(trainer.logger, WandbLogger):
        return folder
    own = folder / str(trainer.logger.name) / str(trainer.logger.version)
    return Path(trainer.strategy.broadcast(own))


class ExportCheckpoint(pl.Callback):
    """Keeps ``model.safetensors``, the file for `eval.py`, beside the logs: after each validation and at the end."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self._export(trainer, pl_module)
        if path is not None:
            print(f"weights for eval.py: {path}")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and isinstance(pl_module, LightningTraining):
                    log_weights(logger, path, pl_module.method, trainer.global_step)

    def _export(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Path | None:
        if not isinstance(pl_module, LightningTraining) or getattr(trainer, "fast_dev_run", False):
            return None
        folder, method = run_folder(trainer), pl_module.method
        tensors = whole_tensors(method)
        if not trainer.is_global_zero:
            return None
        method.provenance |= {
            "steps": trainer.global_step,
            "seconds": round(self._seconds(), 1),
            "precision": str(trainer.precision),
        }
        path = folder / "model.safetensors"
        try:
            return write_tensors(tensors, method, path)
        except (OSError, SafetensorError) as error:  # a full disk
            rank_zero_warn(f"{path} was not written ({error}); training goes on, an older one stays")
            return None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started

    _earlier = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict["seconds"]


class FolderLock(pl.Callback):
    """Holds the folder of the training's logs in every process but the first, which took it when it started."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_rank > 0 and isinstance(trainer.logger, ContinuedCSVLogger):
            self._held.enter_context(holding(Path(trainer.logger.log_dir), "training", first=False))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._held.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._held.close()


class Throughput(pl.Callback):
    """Logs patches per second over all processes, at intervals of a number of batches."""

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
    """Gives the configuration in full to the logger, out of the `config.yaml` that Lightning has just written."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir or "."  # which all processes must ask for together
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.logger is not None:
            written = Path(self._folder, self.config_filename).read_text(encoding="utf-8")
            trainer.logger.log_hyperparams(yaml.safe_load(written))


class StopOnSigterm(pl.Callback):
    """Ends training with exit status 143 after the optimiser step during which any process got SIGTERM.

    Lightning's own handler sends a message to the other processes from inside the signal handler, which may come
    between two other messages and then waits for ever. Here the processes agree at the end of a step.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told = False
        self._agreement = Agreement()
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_: object) -> None:
        self._told = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # gradients that wait for their step are in no checkpoint
        if self._agreement.any(self._told):
            raise SIGTERMException(TERMINATED)


class FaultReport(pl.Callback):
    """Says which images were at work when the loss stopped being finite or a data worker died.

    Where the loss is not finite it also keeps, beside the checkpoints, the state before the step as
    ``non_finite_<step>.ckpt`` and each process's batch as ``non_finite_<step>_rank<rank>.npy``.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        loader = trainer.train_dataloader
        if not isinstance(loader, ResumableLoader) or not isinstance(loader.dataset, PatchBatches):
            return
        if isinstance(exception, NonFiniteLossError):
            number = loader.delivered - 1
            folder = run_folder(trainer) / "checkpoints"
            state = folder / f"non_finite_{trainer.global_step}.ckpt"
            trainer.save_checkpoint(state)
            np.save(state.with_name(f"{state.stem}_rank{trainer.global_rank}.npy"), self._batch.cpu().numpy())
            exception.add_note(f"state and batch are in {state.with_suffix('')}*")
        elif loader.num_workers and is_worker_death(exception):
            number = loader.delivered
            exception.add_note("a process that prepares training batches died")
        else:
            return
        exception.add_note(f"batch {number} comes from {', '.join(loader.dataset.files(number))}")


def is_worker_death(error: BaseException) -> bool:
    """Whether a process of a `DataLoader` died: torch says so, or the connection to it broke."""
    return isinstance(error, ConnectionError | EOFError) or str(error).startswith(
        ("DataLoader worker", "Pin memory thread")
    )
