"""An image and its reconstructions side by side, in lines that are as wide as a page shows them."""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cs_models.arrays import read_npy
from cs_models.errors import first_line
from datamodules.images import open_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches; a page of 10 inches is shown by a README at 8 or so, where its letters still have their size.
PAGE_WIDTH = 10.0
WIDEST_TILE = 3.4
GAP = 0.1
POINTS = 10
LINE = POINTS * 1.22 / 72
# Of a letter, as a share of its height; the mean of DejaVu Sans is a little less.
LETTER = 0.6
# Where a name may be broken beside spaces: behind these.
BREAKS = re.compile(r"([/:,])(?=[^\s\d])")
BREAK = "\u200b"
# Height of an image over its width from which on more of them fit into a line, or fewer.
TALL, FLAT = 1.2, 0.45
SIGNAL_HEIGHT = 0.4


@dataclass(frozen=True)
class Tile:
    """A picture with what stands above it.

    Attributes:
        title: its lines; long ones are wrapped.
        values: ``(H, W)`` or ``(H, W, 3)`` as 8-bit numbers, ``(n,)`` of a signal in [0, 1]; None where there is none
            to be shown.
    """

    title: str
    values: npt.NDArray[Any] | None


def read_tile(path: Path, title: str) -> Tile:
    """A picture, or the ``.npy`` file of a signal; a note is told of one that cannot be read."""
    try:
        return Tile(title, read_npy(path) if path.suffix == ".npy" else np.asarray(open_image(path)))
    except Exception as error:  # Pillow fails in many ways; a report does not depend on its pictures
        print(f"note: not shown, delete it to have it made again: {path} ({first_line(error)})", file=sys.stderr)
        return Tile(title, None)


def strip(groups: Sequence[tuple[str, Sequence[Tile]]], title: str = "") -> Figure:
    """Tiles in lines of equal length, each group under its heading.

    The figure has the shape of what it shows: no line is wider than a page, and nothing of it is empty but the end of
    a group's last line.

    Args:
        groups: a heading, which may be empty, and tiles of one shape.
        title: of the whole.
    """
    from matplotlib.figure import Figure

    aspect = _aspect([tile for _, tiles in groups for tile in tiles])
    columns = _columns(max(len(tiles) for _, tiles in groups), aspect)
    width = min(WIDEST_TILE, (PAGE_WIDTH - GAP) / columns - GAP)
    lines = _lines(groups, columns, width)
    title_lines = wrapped(title, columns * (width + GAP), 1.2 * POINTS) if title else []
    heights = [_height(line, width * aspect) for line in lines]
    total = sum(heights) + GAP + (len(title_lines) * LINE * 1.2 + GAP if title_lines else 0)
    figure = Figure(figsize=(columns * (width + GAP) + GAP, total))
    page = figure.get_figwidth()
    top = total - GAP / 2
    if title_lines:
        figure.text(0.5, top / total, "\n".join(title_lines), ha="center", va="top", fontsize=1.2 * POINTS)
        top -= len(title_lines) * LINE * 1.2 + GAP
    for line, height in zip(lines, heights, strict=True):
        top -= height
        if isinstance(line, str):
            figure.text(GAP / page, (top + height / 2) / total, line, ha="left", va="center", fontsize=1.1 * POINTS)
            continue
        for place, (words, tile) in enumerate(line):
            left = GAP + place * (width + GAP)
            axes = figure.add_axes((left / page, (top + GAP / 2) / total, width / page, width * aspect / total))
            axes.axis("off")
            # Without y, the labels of the ticks are laid out, of which there are none, to put the title above them.
            axes.set_title("\n".join(words), y=1.0, fontsize=POINTS, pad=3, linespacing=1.1)
            _show(axes, tile)
    return figure


def wrapped(text: str, inches: float, points: float = POINTS) -> list[str]:
    """The lines of a text that is no wider than so many inches; paths and settings break behind their marks."""
    letters = max(8, int(inches * 72 / (points * LETTER)))
    return [
        part.replace(f"{BREAK} ", "").replace(BREAK, "")
        for line in text.split("\n")
        for part in textwrap.wrap(BREAKS.sub(rf"\1{BREAK} ", line), letters, break_on_hyphens=False) or [""]
    ]


def _aspect(tiles: Sequence[Tile]) -> float:
    """Height over width of the first tile that has an image."""
    shapes = [tile.values.shape for tile in tiles if tile.values is not None and tile.values.size]
    if not shapes:
        return 1.0
    return SIGNAL_HEIGHT if len(shapes[0]) == 1 else min(4.0, max(0.15, shapes[0][0] / shapes[0][1]))


def _columns(count: int, aspect: float) -> int:
    """Tiles in a line, so that the last line is about as long as the others."""
    most = 5 if aspect > TALL else 4 if aspect > FLAT else 3
    return math.ceil(count / math.ceil(count / most))


_Line = str | list[tuple[list[str], Tile]]


def _lines(groups: Sequence[tuple[str, Sequence[Tile]]], columns: int, width: float) -> list[_Line]:
    """Headings, and lines of tiles with their titles wrapped."""
    lines: list[_Line] = []
    for heading, tiles in groups:
        if heading:
            lines.append(heading)
        titled = [(wrapped(tile.title, width), tile) for tile in tiles]
        lines += [titled[start : start + columns] for start in range(0, len(titled), columns)]
    return lines


def _height(line: _Line, picture: float) -> float:
    if isinstance(line, str):
        return LINE * 1.4
    return picture + max(len(words) for words, _ in line) * LINE + 1.4 * GAP


def _show(axes: Axes, tile: Tile) -> None:
    if tile.values is None:
        return
    if tile.values.ndim == 1:
        axes.plot(tile.values, linewidth=0.7)
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.imshow(tile.values, cmap="gray", vmin=0, vmax=255, aspect="auto")
