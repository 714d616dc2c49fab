"""Train a reconstruction network.

usage:
  python train.py fit --config configs/train/NAME.yaml [--OPTION VALUE ...]
  python train.py validate --config configs/train/NAME.yaml --ckpt_path FILE.ckpt

Installed, `cs-models train` does the same; `fit` may be left out. A configuration that is shipped may be called by its
name alone: --config r_coast --config cpu. A later --config overrides an earlier one, and options override both.

The most used options:
  --data.data_dir DIR           folder of the image sets (default: $CS_DATA, then data/)
  --data.train_sets '[T91]'     image sets or folders to train on
  --trainer.devices N           processes or GPUs
  --trainer.max_steps N         length of the training
  --trainer.precision auto      bfloat16 where the device computes in it natively (auto); 32-true, bf16-mixed, 16-mixed
  --trainer.logger.class_path WandbLogger --trainer.logger.project NAME
  --ckpt_path last              go on where a stopped training left off
  --print_config                show the configuration in full
`python train.py fit --help` lists every option, `configs/train` has a file for every published experiment. A class of
your own is found in the folder where the command is typed: --model.class_path my_file.MyModule

example:
  python train.py fit --config configs/train/r_coast.yaml --data.data_dir data --trainer.devices 4
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cs_models.cli.configs import renamed, with_configs_found
from cs_models.cli.importing import INTERRUPTED, importing
from cs_models.cli.spelling import SUBCOMMANDS, check_spelling
from cs_models.errors import (
    LostProcessError,
    UserError,
    find_user_error,
    first_line,
    lost_process,
    one_line,
    report,
    short_of_memory,
)
from cs_models.launched import TERMINATED, ending_together, local_rank

if TYPE_CHECKING:
    from pytorch_lightning.cli import LightningCLI


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if words else 2
    try:
        with ending_together():
            train(words)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code == TERMINATED:
            return ended_early("ended by SIGTERM", TERMINATED)
        # Lightning turns Ctrl-C into an exit with status 1, and ignores further ones from then on.
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return ended_early("interrupted", INTERRUPTED)
        raise
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        return report(message)
    return 0


def ended_early(how: str, status: int) -> int:
    """Say how to go on, once for all processes of a machine; returns the exit status."""
    if local_rank() == 0:
        print(f"{how}; the same command with --ckpt_path last goes on from the last checkpoint", file=sys.stderr)
    return status


def train(words: Sequence[str]) -> LightningCLI:
    """Run a command line, and give back Lightning's command with trainer and model.

    Raises:
        UserError: for wrong data or settings.
        jsonargparse.ArgumentError: for arguments or YAML keys that do not parse.
    """
    words = [renamed(word) for word in with_configs_found(words, "train")]
    if words[0].startswith("-"):
        words = ["fit", *words]
    # Half an hour to upload the rest of a run: without a network W&B would go on trying; `wandb sync` does it later.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "1800")
    if "" not in sys.path:
        sys.path.insert(0, "")  # classes of the user's own, in the folder where the command is typed
    check_spelling(words)
    # Imported here so that --help, a missing configuration and a misspelt option answer at once.
    with importing():
        from cs_models.cli.allocator import keep_freed_memory
        from cs_models.cli.training_cli import run

    keep_freed_memory()
    return run(words)


def explain(error: Exception) -> str | None:
    """What to tell the user of an error; None for one that is no mistake of theirs."""
    user_error = find_user_error(error) or _wandb_error(error) or lost_process(error) or _memory_error(error)
    notes = getattr(error, "__notes__", [])
    if user_error is None and not notes and not _is_of_users(error):
        return None
    message = one_line(str(user_error or error))
    if any(f"required: {subcommand}.model" in message for subcommand in SUBCOMMANDS):
        message = "no network to train; name one with --config configs/train/NAME.yaml"
    if isinstance(user_error, LostProcessError):
        message += "; the same command with --ckpt_path last goes on from the last checkpoint"
    return "; ".join([message, *notes])


def _is_of_users(error: Exception) -> bool:
    """Whether a parser, a file or Lightning refused what the user asked for."""
    from jsonargparse import ArgumentError
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    return isinstance(error, ArgumentError | OSError | MisconfigurationException)


def _memory_error(error: Exception) -> UserError | None:
    owner = short_of_memory(error)
    if owner is None:
        return None
    return UserError(
        f"the training needs more memory than {owner} has; lower --data.batch_size (--trainer.accumulate_grad_batches "
        "makes up for it) or --data.crop_size"
    )


def _wandb_error(error: Exception) -> str | None:
    """What to say of a login, a network or a process that W&B needs and lacks; None for all other errors."""
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return None
    if isinstance(error, wandb.Error):
        return f"W&B: {first_line(error)}; WANDB_MODE=offline logs without a login or a network"
    if isinstance(error, ConnectionError) and wandb.run is not None:  # an operating system short of memory ends it
        return f"W&B: its process on this machine has ended ({first_line(error)}); --ckpt_path last goes on"
    return None


if __name__ == "__main__":
    sys.exit(main())
