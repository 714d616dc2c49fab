"""Figures of a comparison: PSNR over the CS ratio and over the time; an image with its reconstructions side by side."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cs_models.arrays import read_npy
from cs_models.errors import UserError, first_line
from cs_models.evaluation.pictures import Pictures, distinct_slugs
from cs_models.evaluation.report.summary import Summary, current_rows, label
from cs_models.evaluation.results import Row
from datamodules.images import open_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*X<>"


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [*_draw_curves(summaries, folder), *_draw_strips(current_rows(rows), out, folder)]
    except OSError as error:
        raise UserError(f"cannot write the figures in {folder}: {error.strerror or error}") from error


def _draw_curves(summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """PSNR over the ratio and over the time of an image; a figure for each problem of more than one point."""
    problems: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        problems[problem_title(summary)].append(summary)
    names = distinct_slugs(problems)
    return [
        _draw_curve(group, title, folder / f"psnr_{names[title]}.png")
        for title, group in problems.items()
        if len(group) > 1
    ]


def _draw_curve(summaries: Sequence[Summary], title: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    over_ratio, over_time = figure.subplots(1, 2, sharey=True)
    lines: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        lines[label(summary)].append(summary)
    for index, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point.ratio)
        psnr_db = [point.psnr_db for point in points]
        style = {"marker": MARKERS[index % len(MARKERS)], "label": name}
        over_ratio.plot([100 * point.ratio for point in points], psnr_db, **style)
        over_time.plot([1e3 * point.seconds for point in points], psnr_db, **style)
    over_ratio.set(xlabel="CS ratio in %", ylabel="PSNR in dB", title=title)
    over_time.set(xlabel="milliseconds per image", xscale="log")
    over_ratio.legend(fontsize="small")
    over_ratio.grid(alpha=0.3)
    over_time.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _draw_strips(rows: Sequence[Row], out: Path, folder: Path) -> list[Path]:
    """The first image of each problem that has pictures: a line for each ratio, worst method first."""
    problems: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if Pictures.of_row(out, row).exist():
            problems[problem_title(row)].append(row)
    files, names = [], distinct_slugs(problems)
    for title, candidates in problems.items():
        first = candidates[0]
        shown = [row for row in candidates if (row.image, row.seed) == (first.image, first.seed)]
        files.append(folder / f"images_{names[title]}.png")
        _draw_strip(shown, title, out, files[-1])
    return files


def _draw_strip(rows: Sequence[Row], title: str, out: Path, path: Path) -> None:
    from matplotlib.figure import Figure

    by_ratio: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_ratio[row.ratio].append(row)
    columns = 1 + max(map(len, by_ratio.values()))
    figure = Figure(figsize=(2.6 * columns, 2.9 * len(by_ratio) + 0.4), layout="constrained")
    figure.suptitle(f"{title}: {rows[0].image}")
    axes = figure.subplots(len(by_ratio), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    original = Pictures.of_row(out, rows[0]).original
    for line, (ratio, group) in zip(axes, sorted(by_ratio.items()), strict=True):
        _show(line[0], original, f"original\n(ratio {ratio:g})")
        for axis, row in zip(line[1:], sorted(group, key=lambda row: row.psnr_db), strict=False):
            name = label(row).replace(" [", "\n[")  # an operator is too long for the width of one picture
            _show(axis, Pictures.of_row(out, row).reconstruction, f"{name}\n{row.psnr_db:.2f} dB")
    figure.savefig(path, dpi=130)


def _show(axis: Axes, path: Path, title: str) -> None:
    try:
        if path.suffix == ".npy":
            axis.plot(read_npy(path), linewidth=0.5)
            axis.set_ylim(0, 1)
        else:
            axis.imshow(np.asarray(open_image(path)), cmap="gray", vmin=0, vmax=255)
    except Exception as error:  # Pillow and matplotlib fail in many ways; a report does not depend on its pictures
        print(f"note: not shown, delete it to have it made again: {path} ({first_line(error)})", file=sys.stderr)
    axis.set_title(title, fontsize=9)


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
