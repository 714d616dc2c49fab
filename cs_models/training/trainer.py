"""Lightning's trainer with a precision that suits the device."""

from __future__ import annotations

import sys
from typing import Any, Literal, cast, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.plugins import _PLUGIN_INPUT as Plugin
from pytorch_lightning.plugins import Precision as PrecisionPlugin
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cs_models.errors import UserError
from cs_models.precision import EMULATED_BF16, computes_bf16
from cs_models.training.steps_left import StepsLeft

# Weights stay in float32, as data consistency needs them: nothing ends in "true" but that.
Chosen = Literal["32-true", "32", "16-mixed", "16", "bf16-mixed", "bf16"]
PRECISIONS: tuple[str, ...] = ("auto", *get_args(Chosen))


class Trainer(pl.Trainer):
    """Lightning's `Trainer`, except for what "auto" means, and for how progress is shown."""

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: str | int | None = "auto",
        plugins: Plugin | list[Plugin] | None = None,
        callbacks: list[Callback] | Callback | None = None,
        enable_progress_bar: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            accelerator: "auto" takes CUDA where there is a GPU and the CPU elsewhere; Apple's MPS only by its name,
                since it lacks the float64 that parts of the operators need.
            precision: "auto" takes bfloat16 where the device computes in it natively, float16 on older GPUs, float32
                elsewhere. "16-mixed" means the same as "auto" on a CPU. Others are those of `PRECISIONS`.
            plugins: Lightning's; a precision among them takes the place of "auto".
            callbacks: Lightning's; a progress bar among them takes the place of `StepsLeft`.
            enable_progress_bar: whether there is progress to be seen; yes by default.
            kwargs: everything else of Lightning's `Trainer`.
        """
        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        kind = accelerator if isinstance(accelerator, str) else accelerator.name()
        device = torch.device("cuda" if kind in ("cuda", "gpu") and torch.cuda.is_available() else "cpu")
        given = plugins if isinstance(plugins, list) else [plugins]
        plugged = precision in (None, "auto") and any(isinstance(plugin, PrecisionPlugin) for plugin in given)
        chosen = None if plugged else choose_precision(precision, device)
        shown = [*callbacks] if isinstance(callbacks, list) else [callbacks] if callbacks is not None else []
        if enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in shown):
            shown.insert(0, StepsLeft())
        super().__init__(
            accelerator=accelerator,
            precision=chosen,
            plugins=plugins,
            callbacks=shown,
            enable_progress_bar=enable_progress_bar,
            **kwargs,
        )


def check_precision(asked: str | int | None) -> None:
    """Raise UserError for a precision that networks here are not trained in."""
    if asked is not None and str(asked) not in PRECISIONS:
        raise UserError(f"trainer.precision {asked}: expected one of {', '.join(PRECISIONS)}")


def choose_precision(asked: str | int | None, device: torch.device) -> Chosen:
    """What Lightning is to train in on a device; a line on the error stream says where that is not what was asked for.

    Args:
        asked: see `Trainer`.
        device: where training runs.

    Raises:
        UserError: see `check_precision`.
    """
    check_precision(asked)
    native = computes_bf16(device)
    usual: Chosen = "bf16-mixed" if native else "16-mixed" if device.type == "cuda" else "32-true"
    if asked is None or asked == "auto":
        return usual
    if str(asked) in ("16-mixed", "16") and device.type == "cpu":
        _say(f"precision 16-mixed is for GPUs: on this CPU training runs in {usual}")
        return usual
    if asked in ("bf16-mixed", "bf16") and device.type == "cpu" and not native:
        _say(f"this CPU has no bfloat16: training in it is {EMULATED_BF16}; --trainer.precision auto avoids that")
    return cast(Chosen, str(asked))


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr)
