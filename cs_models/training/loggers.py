"""Training curves in a file, and trained weights at Weights & Biases."""

from __future__ import annotations

import csv
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cs_models.errors import first_line
from cs_models.training.module import ReconstructionModule

log = logging.getLogger(__name__)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger, except that a resumed run goes on in the `metrics.csv` of its folder.

    Lightning deletes the file at every start. Here the rows of earlier starts stay, up to the step at which this one
    begins; what it computes again takes the place of what it computed before.
    """

    _earlier: list[dict[str, Any]] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._earlier is None:
            self._earlier = read_rows(Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*will be deleted.*")
                writer = super().experiment
            writer.metrics = list(self._earlier)
            writer.save()
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        writer = self.experiment
        if self._earlier and step is not None:
            kept = [row for row in self._earlier if int(row["step"]) < step]
            if len(kept) < len(self._earlier):
                Path(writer.metrics_file_path).unlink()
                writer.metrics = kept
                writer.save()
        self._earlier = []
        super().log_metrics(metrics, step)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file without their empty cells, and without a last row that was being written; none if no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key and value} for row in csv.DictReader(file)]
    return [row for row in rows if row.get("step", "").isdigit()]


def forget_anonymous(logger: WandbLogger) -> None:
    """Keep a setting from wandb that Lightning passes on though nobody gave it: wandb warns that it is no more."""
    settings = getattr(logger, "_wandb_init", {})
    if settings.get("anonymous", "") is None:
        del settings["anonymous"]


def log_weights(logger: WandbLogger, path: Path, method: ReconstructionModule, step: int) -> None:
    """Make trained weights an artifact of the run that trained them, under the network's and the run's name.

    Where Weights & Biases cannot be reached any more, a warning says so: the weights are on disk.

    ``eval.py --methods wandb:ENTITY/PROJECT/NETWORK-RUN:TAG`` takes it; the tags are those that Weights & Biases gives,
    such as `latest`, and the step.

    Args:
        logger: that of the training.
        path: ``model.safetensors``.
        method: what was trained; its configuration is told with the weights.
        step: optimiser steps of the training.
    """
    import wandb

    name = re.sub(r"[^\w.-]", "_", f"{method.name}-{logger.experiment.id}")
    try:
        artifact = wandb.Artifact(name, type="model", metadata=method.header())
        artifact.add_file(str(path), name="model.safetensors")
        logger.experiment.log_artifact(artifact, aliases=["latest", f"step-{step}"])
    except (wandb.Error, OSError, ValueError) as error:  # ValueError: a server answers in another way
        log.warning("W&B: %s; %s is on disk and was not uploaded", first_line(error), path)
