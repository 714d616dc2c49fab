"""Figures of a comparison: PSNR and time over the CS ratio, and an image with its reconstructions."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cs_models.errors import UserError
from cs_models.evaluation.pictures import Pictures, distinct_slugs
from cs_models.evaluation.report.strips import read_tile, strip, wrapped
from cs_models.evaluation.report.summary import Summary, current_rows, label
from cs_models.evaluation.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X<>"
STYLES = ("-", "--", ":", "-.")
DPI = 120
FOLDERS = re.compile(r"^\S*[\\/](?=[^\\/\s]+\.(?:safetensors|ckpt)\b)")
LABEL_INCHES = 2.4


def draw_figures(rows: Sequence[Row], summaries: Sequence[Summary], out: Path) -> list[Path]:
    """Draw every figure that the results allow into ``OUT/figures``.

    Args:
        rows: single results.
        summaries: their summary.
        out: the results folder, with the pictures of the reconstructions.

    Returns:
        the files.

    Raises:
        UserError: if a file cannot be written.
    """
    folder = out / "figures"
    figures = {**_comparisons(summaries, folder), **_strips(current_rows(rows), out, folder)}
    for path, figure in figures.items():
        save(figure, path)
    return list(figures)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, and the folders that lead to it.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise UserError(f"cannot write the figures in {path.parent}: {error.strerror or error}") from error


def _comparisons(summaries: Sequence[Summary], folder: Path) -> dict[Path, Figure]:
    """A figure for each problem of more than one point."""
    problems: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        problems[problem_title(summary)].append(summary)
    names = distinct_slugs(problems)
    return {
        folder / f"psnr_{names[title]}.png": comparison(group, title)
        for title, group in problems.items()
        if len(group) > 1
    }


def comparison(summaries: Sequence[Summary], title: str) -> Figure:
    """PSNR and time of the methods: bars where there is one ratio, else PSNR over the ratio and over the time."""
    return bars(summaries, title) if len({one.ratio for one in summaries}) == 1 else curves(summaries, title)


def bars(summaries: Sequence[Summary], title: str) -> Figure:
    """A bar for the PSNR of each method and one for its time, best method first."""
    from matplotlib.figure import Figure

    ranked = sorted(summaries, key=lambda one: (math.isfinite(one.psnr_db), one.psnr_db), reverse=True)
    short = short_labels(ranked)
    names = ["\n".join(wrapped(short[label(one)], LABEL_INCHES)) for one in ranked]
    # In inches: a name of several lines takes the place of as many.
    heights = [0.14 + 0.17 * (1 + name.count("\n")) for name in names]
    places = [sum(heights[:index]) + height / 2 for index, height in enumerate(heights)]
    figure = Figure(figsize=(10, sum(heights) + 1.1), layout="constrained")
    psnr_axes, time_axes = figure.subplots(1, 2, sharey=True)
    milliseconds = [1e3 * one.seconds for one in ranked]
    psnr_db = [one.psnr_db if math.isfinite(one.psnr_db) else 0.0 for one in ranked]
    for axes, widths, texts in (
        (psnr_axes, psnr_db, [f"{one.psnr_db:.2f}" for one in ranked]),
        (time_axes, milliseconds, [f"{value:.0f}" if value >= 100 else f"{value:.2g}" for value in milliseconds]),
    ):
        axes.bar_label(axes.barh(places, widths, color="tab:blue", height=0.23), texts, padding=3)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    psnr_axes.set_yticks(places, names)
    psnr_axes.set_ylim(sum(heights), 0)
    psnr_axes.margins(x=0.16)
    psnr_axes.set_xlabel("PSNR in dB")
    _time_axis(time_axes, milliseconds, room=6)
    figure.suptitle(f"{title}, ratio {ranked[0].ratio:g}")
    return figure


def curves(summaries: Sequence[Summary], title: str) -> Figure:
    """PSNR over the CS ratio and over the time of an image; the legend stands beside them."""
    from matplotlib.figure import Figure

    lines: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        lines[label(summary)].append(summary)
    short = short_labels(summaries)
    names = ["\n".join(wrapped(short[name], LABEL_INCHES, 9)) for name in lines]
    height = 0.4 + 0.17 * sum(1.2 + name.count("\n") for name in names)
    figure = Figure(figsize=(12, max(4.5, height)), layout="constrained")
    over_ratio, over_time = figure.subplots(1, 2, sharey=True)
    for index, (name, points) in enumerate(zip(names, lines.values(), strict=True)):
        points.sort(key=lambda point: point.ratio)
        psnr_db = [point.psnr_db for point in points]
        # There are ten colours: the next ten methods have them again, with other markers and other dashes.
        turn = index // len(MARKERS)
        style = {"marker": MARKERS[(index + turn) % len(MARKERS)], "linestyle": STYLES[turn % len(STYLES)]}
        over_ratio.plot([100 * point.ratio for point in points], psnr_db, label=name, **style)
        over_time.plot([1e3 * point.seconds for point in points], psnr_db, **style)
    over_ratio.set(xlabel="CS ratio in %", ylabel="PSNR in dB")
    _time_axis(over_time, [1e3 * one.seconds for one in summaries])
    over_ratio.grid(alpha=0.3)
    over_time.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _time_axis(axes: Axes, milliseconds: Sequence[float], room: float = 2) -> None:
    """Logarithmic, with plain numbers at so few places that they do not touch one another."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    known = [value for value in milliseconds if value > 0]
    low, high = (min(known) / 2, max(known) * room) if known else (1, 10)
    axes.set(xscale="log", xlim=(low, high), xlabel="milliseconds per image")
    steps = (1.0, 2.0, 5.0) if high < 60 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _strips(rows: Sequence[Row], out: Path, folder: Path) -> dict[Path, Figure]:
    """The first image of each problem that has pictures: a group for each ratio, worst method first."""
    problems: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if Pictures.of_row(out, row).exist():
            problems[problem_title(row)].append(row)
    names = distinct_slugs(problems)
    figures = {}
    for title, candidates in problems.items():
        first = candidates[0]
        shown = [row for row in candidates if (row.image, row.seed) == (first.image, first.seed)]
        figures[folder / f"images_{names[title]}.png"] = _strip(shown, title, out)
    return figures


def _strip(rows: Sequence[Row], title: str, out: Path) -> Figure:
    by_ratio: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_ratio[row.ratio].append(row)
    short = short_labels(rows)
    original = read_tile(Pictures.of_row(out, rows[0]).original, "original")
    groups = []
    for ratio, group in sorted(by_ratio.items()):
        ranked = sorted(group, key=lambda row: row.psnr_db)
        tiles = [
            read_tile(Pictures.of_row(out, row).reconstruction, f"{short[label(row)]}\n{row.psnr_db:.2f} dB")
            for row in ranked
        ]
        groups.append((f"ratio {ratio:g}", [original, *tiles]))
    heading = f"{title}: {rows[0].image}"
    if len(groups) == 1:  # which needs no heading of its own
        return strip([("", groups[0][1])], f"{heading}, {groups[0][0]}")
    return strip(groups, heading)


def short_labels(items: Iterable[Row | Summary]) -> dict[str, str]:
    """What to write for each `label`: a checkpoint without its folders, unless another one has the same name."""
    labels = list(dict.fromkeys(map(label, items)))
    names = [FOLDERS.sub("", text) for text in labels]
    return {text: name if names.count(name) == 1 else text for text, name in zip(labels, names, strict=True)}


def problem_title(item: Row | Summary) -> str:
    """The set, and how it is measured where that is not the usual way."""
    words = [item.dataset]
    if item.channels == "rgb":
        words.append(item.channels)
    if item.noise > 0:
        words.append(f"noise {item.noise:g}")
    if item.bits is not None:
        words.append(f"{item.bits} bits")
    return ", ".join(words)
