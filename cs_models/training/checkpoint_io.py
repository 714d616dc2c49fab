"""Lightning's training checkpoints on disks that fill up and in processes that are killed."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from cs_models.errors import UserError
from cs_models.files import replacing
from cs_models.training.torch_files import check_archive, why_unreadable

UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError, ValueError)


class DurableCheckpointIO(TorchCheckpointIO):
    """Whole files or none, on one machine's file system.

    A file is written beside its place, forced to the disk and renamed, so that a process that dies at any moment
    leaves the file that was there before. (Lightning writes to the folder of temporary files, which is often another
    file system, from where a file is copied into its place and may be torn.) A file that cannot be written is
    reported, and no checkpoint is removed until another one was written: training goes on.
    """

    def __init__(self) -> None:
        self._last_write_failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; where that fails, say so, and keep what was there."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial, open(partial, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._last_write_failed = True
            rank_zero_warn(f"checkpoint {path} was not written ({error.strerror}); training goes on, older ones stay")
        else:
            self._last_write_failed = False

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that a newer one replaces, unless the newer one could not be written."""
        if not self._last_write_failed:
            super().remove_checkpoint(path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU; of a damaged ``last.ckpt``, the newest readable one in its folder.

        Raises:
            UserError: if the file holds weights alone, or is damaged: ``last.ckpt`` together with all of its folder.
        """
        path = Path(path)
        if path.suffix == ".safetensors":
            raise UserError(
                f"{path} holds weights, not the state of a training: start from them with "
                "--model.init_args.training.start_from, or go on from a .ckpt with --ckpt_path"
            )
        try:
            return self._load(path, map_location, weights_only)
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            damage = UserError(f"checkpoint {path} is damaged: {why_unreadable(error)}")
            if not path.stem.startswith(ModelCheckpoint.CHECKPOINT_NAME_LAST):
                raise damage from error
        others = [file for file in path.parent.glob("*.ckpt") if file != path and "step=" in file.stem]
        for other in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
            try:
                checkpoint = self._load(other, map_location, weights_only)
            except UNREADABLE:
                continue
            rank_zero_warn(f"{damage}; going on from {other}, step {checkpoint['global_step']}")
            return checkpoint
        raise UserError(f"{damage}; no other checkpoint in its folder is readable")

    def _load(self, path: Path, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
        """A checkpoint whose checksums hold and whose parts are of the right types."""
        check_archive(path)
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        parts = {"cs_models": dict, "state_dict": dict, "global_step": int}
        for part, kind in parts.items():
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(part), kind):
                raise UserError(f"it is no checkpoint of a training of this framework: it has no '{part}'")
        return checkpoint


class TrainingCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` that with `save_on_exception` saves where training is told to stop by SIGTERM, and only there.

    That is between two steps and in all processes alike. Other errors may come in the middle of a step, or in one
    process, which would wait for the others for ever.
    """

    def has_last(self, trainer: pl.Trainer) -> bool:
        """Whether ``--ckpt_path last`` has something to go on from."""
        return bool(self._find_last_checkpoints(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):
            super().on_exception(trainer, pl_module, exception)
