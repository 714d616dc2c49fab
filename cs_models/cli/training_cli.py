"""Lightning's command line for `ReconstructionModule`; importing it takes seconds."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from pytorch_lightning import Trainer as LightningTrainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import WandbLogger

from cs_models.cli.configs import renamed
from cs_models.cli.training_checks import check_together, check_trainer
from cs_models.errors import UserError, find_cause, first_line
from cs_models.locks import holding, is_lock
from cs_models.precision import is_no_tf32_advice
from cs_models.settings import check_range
from cs_models.training.callbacks import ExportCheckpoint, FaultReport, FolderLock, LogConfig, StopOnSigterm, Throughput
from cs_models.training.checkpoint_io import TrainingCheckpoint
from cs_models.training.curves import DrawCurves
from cs_models.training.lightning import LightningTraining
from cs_models.training.loggers import forget_anonymous
from cs_models.training.module import ReconstructionModule
from cs_models.training.trainer import Trainer
from datamodules.patches import PatchDataModule

_LOAD_YAML = get_loader("yaml")


def run(words: Sequence[str] | None) -> LightningCLI:
    """Parse a command line, that of the process where none is given, and run its subcommand.

    Raises:
        UserError: for wrong data or settings.
        jsonargparse.ArgumentError: for arguments or YAML keys that do not parse.
    """
    for keeps in (_tells_of_this_training, is_no_tf32_advice):
        logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(keeps)
    # `main` hands over the words of the command line, in which names of configurations have been resolved.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    # Lightning's own use of torch, which nobody who trains can change.
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec")
    # wandb.init has a default that is no plain value and that no configuration needs.
    warnings.filterwarnings("ignore", r"\s*Unable to serialize instance <object object")
    # The moving average of the weights is meant to be in eval mode.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
    # A step that float16's scaler skips for an overflow counts for the schedule like any other.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`")
    # One image at a time is validated, read from disk; more processes would not help.
    warnings.filterwarnings("ignore", r".*does not have many workers")
    # Who names no validation set means it.
    warnings.filterwarnings("ignore", r"Total length of `list` across ranks is zero")
    # Recorded steps keep what was made while they were recorded, which is on a stream of its own.
    warnings.filterwarnings("ignore", r"The AccumulateGrad node's stream does not match")
    # Means of a validation are over the images of all processes before they are logged.
    warnings.filterwarnings("ignore", r"It is recommended to use `self.log\('val/")
    # Nothing is done in place to what IDM returns; a network of the user's own may need the warning.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPIDM\) returned a view tensor")
    # The data module counts the batches that it delivered, and goes on after them.
    warnings.filterwarnings("ignore", r"You're resuming from a checkpoint that ended before the epoch ended")
    set_loader("yaml", _load_renamed, exceptions=(yaml.YAMLError,))
    return TrainCLI(
        LightningTraining,
        PatchDataModule,
        trainer_class=Trainer,
        parser_class=FullNamesParser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # by hyperparameters in checkpoints, of which ours hold none
        save_config_callback=LogConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        trainer_defaults={
            "callbacks": [
                FolderLock(),
                ExportCheckpoint(),
                DrawCurves(),
                Throughput(),
                LearningRateMonitor("step"),
                StopOnSigterm(),
                FaultReport(),
            ],
            "plugins": {"class_path": "cs_models.training.checkpoint_io.DurableCheckpointIO"},
            "use_distributed_sampler": False,
            "enable_model_summary": False,
        },
        args=None if words is None else list(words),
    )


def _load_renamed(text: str) -> Any:
    # For a setting of a setting, jsonargparse writes the null of a command line anew, as Python does.
    if text == "None":
        return None
    return _LOAD_YAML(renamed(text) if isinstance(text, str) else text)


def _tells_of_this_training(record: logging.LogRecord) -> bool:
    """Not for advertisements of others, devices that a machine lacks, or what `main` says more clearly."""
    foreign = ("💡", "TPU available: False", "GPU available: False", "An SIGTERMException was raised")
    return not record.getMessage().startswith(foreign)


class FullNamesParser(LightningArgumentParser):
    """A parser, also of the settings of a class, that does not take the beginning of a name for the name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))


class TrainCLI(LightningCLI):
    """Errors are raised for the caller to show, and a checkpoint never overrides what the user wrote."""

    model: LightningTraining

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Parse and run, and hold the folder of the training until then."""
        self._asked = next(iter(kwargs["args"] or sys.argv[1:]), "")
        with ExitStack() as self._held:
            super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: object) -> LightningArgumentParser:
        return super().init_parser(**kwargs, exit_on_error=False)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As Lightning's, but `model` is a method, which `LightningTraining` trains."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        defaults = {f"trainer.{key}": value for key, value in self.trainer_defaults.items() if key != "callbacks"}
        parser.set_defaults(defaults)
        parser.add_subclass_arguments(ReconstructionModule, "model", fail_untyped=False, required=True)
        parser.add_lightning_class_args(PatchDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(TrainingCheckpoint, "checkpoint")
        parser.set_defaults(
            {"checkpoint.save_last": True, "checkpoint.save_top_k": 1, "checkpoint.save_on_exception": True}
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks the object
        """The one that the command line begins with, alone: making the parser of another takes time as well."""
        common = {"model", "datamodule"}
        every = {"fit": common | {"train_dataloaders", "val_dataloaders"}, "validate": common | {"dataloaders"}}
        return {name: skipped for name, skipped in every.items() if name == self._asked} or every

    def _parse_ckpt_path(self) -> None:
        """Lightning would take the model's settings from the checkpoint; the command line wins here."""

    def _set_seed(self) -> None:
        check_range("seed_everything", self._get(self.config, "seed_everything"), 0, 2**32 - 1)
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Refuse what would start and go wrong later, and choose the folder of the run."""
        config = self.config[self.config.subcommand]
        check_trainer(config.trainer, config.data)
        self._check_strategy(config)
        if self.config.subcommand == "fit":
            self._choose_folder(config)
        if config.get("ckpt_path"):  # of course it does, where a training goes on
            warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ImportError, ValueError) as error:
            missing = find_cause(error, ImportError)
            if missing is None:
                raise
            raise UserError(f"a package is missing for these settings: {first_line(missing)}") from error
        self.model = LightningTraining(self._get(self.config_init, "model"))
        check_together(self.model.method, self.trainer, self.datamodule)
        if self.config.subcommand == "fit":  # nothing is written before all settings are found good
            self._hold_folder(self.config[self.config.subcommand])
        self._check_last()

    def instantiate_trainer(self, **kwargs: Any) -> LightningTrainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except Exception as error:  # nothing but the settings is new here; Lightning has errors of many kinds for them
            reason = " ".join(str(error).split())
            raise UserError(f"the trainer's settings do not fit together or not this machine: {reason}") from error
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                forget_anonymous(logger)
        return trainer

    def _check_strategy(self, config: Any) -> None:
        strategy = getattr(config.trainer.strategy, "class_path", str(config.trainer.strategy))
        splits = any(name in strategy.lower() for name in ("fsdp", "deepspeed", "modelparallel", "model_parallel"))
        ours = strategy == "cs_models.training.sharding.FSDP" and config.model.class_path.endswith("IDMModule")
        if splits and not ours:
            raise UserError(
                f"--trainer.strategy {strategy} splits the weights over devices; choose ddp, under which every "
                "network here fits one device, or for IDM --config configs/train/override/fsdp.yaml"
            )

    def _choose_folder(self, config: Any) -> None:
        """Give a new training a folder of its own: ``runs/NAME``, or the next of ``runs/NAME_2``, ``runs/NAME_3``.

        With ``--ckpt_path last`` it is the newest of them, with the path of a checkpoint the one that holds it. Loggers
        other than ours number their folders themselves.
        """
        logger = config.trainer.logger
        if not getattr(logger, "class_path", "").endswith(".ContinuedCSVLogger"):
            return
        init = logger.init_args
        if init.version:
            return
        runs = numbered_folders(Path(init.save_dir), init.name)
        last, checkpoint = config.get("ckpt_path") == "last", Path(config.get("ckpt_path") or "")
        continued = runs[-1:] if last else [run for run in runs if run in checkpoint.parents]
        if continued:
            init.name = continued[0].name
        elif not last:
            init.name = next_name(runs, init.name)

    def _hold_folder(self, config: Any) -> None:
        """Refuse a second training in the folder of one that runs; other processes ask later, see `FolderLock`."""
        logger = config.trainer.logger
        ours = getattr(logger, "class_path", "").endswith(".ContinuedCSVLogger")
        if ours and _rank() == 0:
            init = logger.init_args
            self._held.enter_context(holding(Path(init.save_dir) / init.name / (init.version or ""), "training"))

    def _check_last(self) -> None:
        """Refuse ``--ckpt_path last`` where there is no checkpoint; Lightning would start anew."""
        if self._get(self.config, "ckpt_path") != "last":
            return
        callbacks = [one for one in self.trainer.checkpoint_callbacks if isinstance(one, TrainingCheckpoint)]
        if not any(callback.has_last(self.trainer) for callback in callbacks):
            raise UserError(
                f"--ckpt_path last finds no checkpoint of an earlier training in {self.trainer.log_dir}; leave it out "
                "to start one, or give the path of a .ckpt file (a run of W&B is found again by its name: "
                "--trainer.logger.init_args.version NAME, the same at every start)"
            )


def _rank() -> int:
    """Number of this process among those of a training, as a launcher tells it before they meet."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    return next((int(rank) for rank in ranks if rank is not None), 0)


def numbered_folders(parent: Path, name: str) -> list[Path]:
    """The folders ``NAME``, ``NAME_2``, ``NAME_3``, ... that hold something, in this order.

    A lock alone is nothing: the first process of this very training may have left it, or one that starts as well.
    """
    found: dict[int, Path] = {}
    for folder in parent.glob(f"{name}*"):
        match = re.fullmatch(re.escape(name) + r"(?:_(\d+))?", folder.name)
        if match and folder.is_dir() and not all(is_lock(entry.name) for entry in folder.iterdir()):
            found[int(match[1] or 1)] = folder
    return [found[number] for number in sorted(found)]


def next_name(folders: Sequence[Path], name: str) -> str:
    """The name of the next training after those that have a folder."""
    if not folders:
        return name
    number = re.fullmatch(re.escape(name) + r"(?:_(\d+))?", folders[-1].name)
    assert number is not None
    return f"{name}_{int(number[1] or 1) + 1}"
