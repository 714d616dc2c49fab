"""Train a reconstruction network.

usage:
  python train.py fit --config configs/train/NAME.yaml [--OPTION VALUE ...]
  python train.py validate --config configs/train/NAME.yaml --ckpt_path FILE.ckpt

A later --config overrides an earlier one, and options override both. The most used options:
  --data.data_dir DIR           folder of the image sets (default: $CS_DATA, then data/)
  --data.train_sets '[T91]'     image sets or folders to train on
  --trainer.devices N           processes or GPUs
  --trainer.max_steps N         length of the training
  --trainer.precision bf16-mixed
  --trainer.logger.class_path WandbLogger --trainer.logger.project NAME
  --ckpt_path last              go on where a stopped training left off
  --print_config                show the configuration in full
`python train.py fit --help` lists every option, `configs/train` has a file for every published experiment.

example:
  python train.py fit --config configs/train/r_coast.yaml --data.data_dir data --trainer.devices 4
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning.cli import LightningCLI


def run(arguments: Sequence[str] | None) -> LightningCLI:
    """Parse the arguments, those of the process where none are given, and run the subcommand.

    Raises:
        UserError: for wrong data or settings.
        jsonargparse.ArgumentError: for arguments or YAML keys that do not parse.
    """
    # Half an hour to upload the rest of a run: without a network W&B would go on trying; `wandb sync` does it later.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "1800")
    # wandb.init has a default that is no plain value and that no configuration needs.
    warnings.filterwarnings("ignore", r"\s*Unable to serialize instance <object object")
    # The moving average of the weights is meant to be in eval mode.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
    # Imported here so that --help and a missing subcommand answer at once.
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import LearningRateMonitor
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from cs_models.cli.allocator import keep_freed_memory
    from cs_models.errors import UserError
    from cs_models.reconstruction import ReconstructionModule
    from cs_models.training.callbacks import ExportCheckpoint, FaultReport, LogConfig, StopOnSigterm, Throughput
    from cs_models.training.checkpoint_io import TrainingCheckpoint
    from datamodules.patches import PatchDataModule

    keep_freed_memory()

    class TrainCLI(LightningCLI):
        """Errors are raised for `main` to show, and a checkpoint never overrides what the user wrote."""

        def init_parser(self, **kwargs: object) -> LightningArgumentParser:
            return super().init_parser(**kwargs, exit_on_error=False)

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(TrainingCheckpoint, "checkpoint")
            parser.set_defaults(
                {"checkpoint.save_last": True, "checkpoint.save_top_k": 1, "checkpoint.save_on_exception": True}
            )

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            common = {"model", "datamodule"}
            return {"fit": common | {"train_dataloaders", "val_dataloaders"}, "validate": common | {"dataloaders"}}

        def _parse_ckpt_path(self) -> None:
            """Lightning would take the model's settings from the checkpoint; the command line wins here."""

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            try:
                return super().instantiate_trainer(**kwargs)
            except (MisconfigurationException, ImportError, ValueError) as error:
                raise UserError(f"the trainer's settings do not fit together or not this machine: {error}") from error

        def before_instantiate_classes(self) -> None:
            """Refuse what would start and go wrong later."""
            config = self.config[self.config.subcommand]
            strategy = getattr(config.trainer.strategy, "class_path", str(config.trainer.strategy))
            splits = any(name in strategy.lower() for name in ("fsdp", "deepspeed", "modelparallel", "model_parallel"))
            if splits and (
                strategy != "cs_models.training.sharding.FSDP" or not config.model.class_path.endswith("IDMModule")
            ):
                raise UserError(
                    f"--trainer.strategy {strategy} splits the weights over devices; choose ddp, under which every "
                    "network here fits one device, or for IDM --config configs/train/override/fsdp.yaml"
                )
            # The last checkpoint of a W&B run that has no name is not found: training would start anew.
            logger = config.trainer.logger
            unnamed = "WandbLogger" in getattr(logger, "class_path", "") and not (
                logger.init_args.version or logger.init_args.id
            )
            if config.get("ckpt_path") == "last" and unnamed:
                raise UserError(
                    "--ckpt_path last needs the name of the W&B run: --trainer.logger.init_args.version NAME, "
                    "which is the same at every start"
                )

    return TrainCLI(
        ReconstructionModule,
        PatchDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_callback=LogConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        trainer_defaults={
            "callbacks": [
                ExportCheckpoint(),
                Throughput(),
                LearningRateMonitor("step"),
                StopOnSigterm(),
                FaultReport(),
            ],
            "plugins": {"class_path": "cs_models.training.checkpoint_io.DurableCheckpointIO"},
            "use_distributed_sampler": False,
        },
        args=None if arguments is None else list(arguments),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if words else 2

    from jsonargparse import ArgumentError
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from cs_models.errors import find_user_error, one_line

    try:
        run(arguments)
    except Exception as error:
        user_error = find_user_error(error) or _wandb_error(error)
        notes = getattr(error, "__notes__", [])
        of_users = isinstance(error, ArgumentError | OSError | MisconfigurationException)
        if user_error is None and not notes and not of_users:
            raise
        message = one_line(str(user_error or error))
        if "required: fit.model" in message or "required: validate.model" in message:
            message = "no network to train; name one with --config configs/train/NAME.yaml"
        print("; ".join([f"error: {message}", *notes]), file=sys.stderr)
        return 2
    return 0


def _wandb_error(error: Exception) -> str | None:
    """What to say of a login or a network that W&B did not find; None for all other errors."""
    wandb = sys.modules.get("wandb")
    if wandb is None or not isinstance(error, wandb.Error):
        return None
    from cs_models.errors import first_line

    return f"W&B: {first_line(error)}; WANDB_MODE=offline logs without a login or a network"


if __name__ == "__main__":
    sys.exit(main())
