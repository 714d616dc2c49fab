"""The figure of an experiment: curves and maps of several runs, as the section ``plot`` of its YAML file says.

``python experiments/curves.py NAME SCALE FOLDER... --out FOLDER`` reads the tables in the folders of the runs
(``per_image.csv`` of eval.py, ``metrics.csv`` of trainings, tables of the scripts in ``benchmarks``) and writes
``figure.png``. ``plot`` is a list of panels, see `Panel`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from command import run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from measured import Line, cell, grouped, is_number, mean, read_lines, values
from workflow_files import Experiment

from cs_models.errors import UserError

MARKERS = "osD^vP*X<>"
DOTS_PER_INCH = 90
COLUMNS = 3
NAMES = {
    "psnr_db": "PSNR in dB",
    "ssim": "SSIM",
    "pcc": "PCC",
    "ratio": "Sr",
    "sparse_rate": "Kr",
    "least_ratio": "least Sr",
    "added_gb": "added memory in GB",
    "peak_mib": "peak memory in MiB",
    "largest_batch": "largest batch",
    "train/loss": "loss",
    "val/psnr_10": "PSNR in dB",
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a figure: curves, or a map.

    Attributes:
        table: the tables that it shows, without ``.csv``.
        x: column of the horizontal axis.
        y: column of the vertical axis; cells of one x are averaged.
        by: columns that make one curve; ``run`` is the name of a run's folder.
        where: what cells of a column have to be, a value or a list of them.
        each: a column, of which every value has a panel of its own.
        value: column that makes this a map over x and y.
        over: the map shows the ratio of its values to those where these cells are different, such as
            ``{method: stomp}``.
        points: no lines between the points.
        log: axes that are logarithmic: x, y or xy.
        title: what stands above.
        limits: of y, ``[low, high]``.
        range: of x, likewise.
    """

    table: str
    x: str
    y: str
    by: list[str] = field(default_factory=lambda: ["method"])
    where: dict[str, Any] = field(default_factory=dict)
    each: str | None = None
    value: str | None = None
    over: dict[str, Any] = field(default_factory=dict)
    points: bool = False
    log: str = ""
    title: str = ""
    limits: list[float] | None = None
    range: list[float] | None = None


def draw(panels: Sequence[Panel], folders: Sequence[Path]) -> Figure:
    """The figure of several panels.

    Args:
        panels: as the YAML file has them.
        folders: of the runs.

    Raises:
        UserError: for a table or column that there is not.
    """
    single = [one for panel in panels for one in _split(panel, folders)]
    columns = min(COLUMNS, len(single))
    rows = math.ceil(len(single) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained", dpi=DOTS_PER_INCH)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(places, single, strict=False):
        lines = read_lines(folders, panel.table, panel.where)
        if panel.value:
            _draw_map(figure, axes, panel, lines, read_lines(folders, panel.table, panel.where | panel.over))
        else:
            _draw_curves(axes, panel, lines)
        axes.set_title(panel.title, fontsize="medium")
        axes.set(xlabel=NAMES.get(panel.x, panel.x), ylabel=NAMES.get(panel.y, panel.y))
    for axes in places[len(single) :]:
        axes.axis("off")
    return figure


def _split(panel: Panel, folders: Sequence[Path]) -> list[Panel]:
    """A panel for each value of the column `each`."""
    if panel.each is None:
        return [panel]
    found = values(read_lines(folders, panel.table, panel.where), panel.each)
    return [
        replace(
            panel,
            each=None,
            where=panel.where | {panel.each: one},
            title=", ".join(filter(None, [panel.title, _named(panel.each, one)])),
        )
        for one in found
    ]


def _named(column: str, value: str) -> str:
    """A word as it is; a number with the name of its column."""
    return f"{NAMES.get(column, column)} = {value}" if is_number(value) else value


def _draw_curves(axes: Axes, panel: Panel, lines: list[Line]) -> None:
    words = [] if all(is_number(cell(line, panel.x)) for line in lines) else values(lines, panel.x)
    groups = grouped(lines, panel.by)
    if all(is_number(name) for names in groups for name in names):
        groups = dict(sorted(groups.items(), key=lambda group: [float(name) for name in group[0]]))
    for index, (names, group) in enumerate(groups.items()):
        points = {x: y for (x,), here in grouped(group, [panel.x]).items() if (y := mean(here, panel.y)) is not None}
        places = [(words.index(x) if words else float(x), y) for x, y in points.items()]
        axes.plot(
            *np.array(sorted(places)).reshape(-1, 2).T,
            marker=MARKERS[index % len(MARKERS)] if len(places) <= 40 else "",
            linestyle="" if panel.points else "-",
            markersize=4,
            label=", ".join(map(_named, panel.by, names)),
        )
    if words:
        axes.set_xticks(range(len(words)), words, rotation=20, ha="right")
    if "y" in panel.log:
        axes.set_yscale("log")
    if "x" in panel.log:
        axes.set_xscale("log")
        if not words and len(ticks := values(lines, panel.x)) <= 8:
            axes.xaxis.set_major_locator(FixedLocator([float(tick) for tick in ticks]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
    axes.set(ylim=panel.limits, xlim=panel.range)
    axes.grid(alpha=0.3)
    # Below the picture, where it hides no curve.
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.5, ncols=2, frameon=False, fontsize="x-small"
    )


def _draw_map(figure: Figure, axes: Axes, panel: Panel, lines: list[Line], others: list[Line]) -> None:
    """Cells of a map with their values in them, so that it is read without its colours too."""
    columns, rows = values(lines, panel.x), values(lines, panel.y)
    shown = _cells(panel, lines, columns, rows)
    if panel.over:
        shown = shown / _cells(panel, others, columns, rows)
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    bright = (np.nanmin(shown) + np.nanmax(shown)) / 2
    for (row, column), value in np.ndenumerate(shown):
        colour = "black" if value > bright else "white"
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=axes)


def _cells(panel: Panel, lines: list[Line], columns: list[str], rows: list[str]) -> np.ndarray:
    groups = grouped(lines, [panel.y, panel.x])
    assert panel.value is not None
    means = [[mean(groups.get((row, column), []), panel.value) for column in columns] for row in rows]
    return np.array(means, dtype=float)


def write(experiment: Experiment, scale: str, folders: Sequence[Path], out: Path) -> None:
    """Write the figure."""
    try:
        draw([Panel(**panel) for panel in experiment.plot], folders).savefig(out / "figure.png")
    except TypeError as error:
        raise UserError(f"{experiment.name}.yaml: plot: {error}") from error


if __name__ == "__main__":
    sys.exit(run(Path(__file__).parent, __doc__, write))
