"""A picture of a training's curves beside its logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from cs_models.errors import first_line
from cs_models.files import replacing
from cs_models.training.loggers import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, VALIDATION = "train/loss", "val/psnr"
MOST_LINES = 12
Curve = tuple[list[int], list[float]]


class DrawCurves(pl.Callback):
    """Draws ``curves.png`` beside ``metrics.csv`` after each validation and at the end: loss, and validation PSNR.

    Loggers other than `CSVLogger` show curves themselves. A picture that cannot be drawn is a warning.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        if not trainer.is_global_zero or not loggers:
            return
        folder = Path(loggers[0].log_dir)
        try:
            loggers[0].save()
            curves = curves_of(folder / "metrics.csv")
            if any(len(steps) > 1 for steps, _ in curves.values()):
                with replacing(folder / "curves.png") as partial:
                    figure(curves).savefig(partial, dpi=120, format="png")
        except Exception as error:  # matplotlib fails in many ways, and a disk may be full
            rank_zero_warn(f"{folder / 'curves.png'} was not drawn ({first_line(error)}); training goes on")


def curves_of(metrics: Path) -> dict[str, Curve]:
    """Steps and values of the loss and of each validation PSNR, by their names in a ``metrics.csv``."""
    curves: dict[str, Curve] = {}
    for row in read_rows(metrics):
        for name, text in row.items():
            if name == LOSS or name.startswith(VALIDATION):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row["step"]) + 1)
                values.append(float(text))
    return curves


def figure(curves: Mapping[str, Curve]) -> Figure:
    """The loss over the steps, logarithmic where it is positive, and beside it the validation PSNR at each ratio."""
    from matplotlib.figure import Figure

    validation = {name: curve for name, curve in curves.items() if name != LOSS}
    shown = [panel for panel, there in ((_loss, LOSS in curves), (_validation, bool(validation))) if there]
    drawn = Figure(figsize=(5.5 * len(shown) + 0.5, 4), layout="constrained")
    for axes, panel in zip(drawn.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        panel(axes, curves)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    return drawn


def _loss(axes: Axes, curves: Mapping[str, Curve]) -> None:
    steps, values = curves[LOSS]
    axes.plot(steps, values, linewidth=0.8)
    axes.set(ylabel="training loss", yscale="log" if min(values) > 0 else "linear")


def _validation(axes: Axes, curves: Mapping[str, Curve]) -> None:
    names = sorted((name for name in curves if name.startswith(f"{VALIDATION}_")), key=_percent)
    # One ratio is the mean of all; of very many the mean is shown alone.
    shown: Sequence[str] = names if 1 < len(names) <= MOST_LINES else [VALIDATION if VALIDATION in curves else names[0]]
    for name in shown:
        label = f"{_percent(name):g} %" if len(shown) > 1 else None
        axes.plot(*curves[name], marker="o", markersize=3, label=label)
    axes.set_ylabel("validation PSNR in dB" + (", mean over the ratios" if len(names) > MOST_LINES else ""))
    if len(shown) > 1:
        axes.legend(title="CS ratio", loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _percent(name: str) -> float:
    return float(name.removeprefix(f"{VALIDATION}_"))
