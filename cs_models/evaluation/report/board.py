"""What the leaderboard shows, as plain values: a table for each set and operator, and what papers print for the set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cs_models.evaluation.pictures import slug
from cs_models.evaluation.protocol import fits_ratio
from cs_models.evaluation.report.figures import problem_title
from cs_models.evaluation.report.statistics import confidence_interval
from cs_models.evaluation.report.summary import (
    Published,
    Setting,
    by_setting,
    means_by,
    named,
    printed_figures,
    published_figures,
    summary_of,
    with_finite_psnr,
)
from cs_models.evaluation.results import Row
from cs_models.operator_names import OPERATORS

# Papers report means over whole sets; beside a part of one their figures say nothing.
WHOLE_SETS = {"Set11": 11, "CBSD68": 68, "Urban100": 100, "Urban100-256": 100, "DIV2K": 100, "DIV2K-256": 100}


class Estimate(NamedTuple):
    """A mean over images with its 95 % interval, which a single image has none of."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Picture:
    """The reconstruction of one image; addresses are relative to the page."""

    image: str
    ratio: float
    psnr_db: float
    ssim: float
    original: str
    reconstruction: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A method at one ratio.

    Attributes:
        ratio: CS ratio.
        measured_ratio: what was really measured, where that is more than a tenth off.
        images: how many.
        exact: how many of them are reconstructed without error and left out of the PSNR.
        seeds: draws of the operator.
        psnr_db: mean PSNR.
        ssim: mean SSIM.
        seconds: of one image.
        macs: multiply-adds of a network for one image.
        printed: what papers report for the method, where all images of their set were measured.
    """

    ratio: float
    measured_ratio: float | None
    images: int
    exact: int
    seeds: int
    psnr_db: Estimate
    ssim: Estimate
    seconds: float
    macs: float | None
    printed: list[Published]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A method, with its cells at the ratios that it was measured at.

    Attributes:
        name: the method as typed, or what a checkpoint's file is called without its ratio.
        methods: as typed, all of them.
        provenance: see `Row`.
        precision: see `Row`.
        schedule: see `Row`.
        device: everything that it ran on.
        parameters: of a network; 0 for a solver.
        cells: by increasing ratio.
        pictures: that were kept.
    """

    name: str
    methods: list[str]
    provenance: str
    precision: str
    schedule: str
    device: str
    parameters: int
    cells: list[Cell]
    pictures: list[Picture]


@dataclass(frozen=True, kw_only=True)
class PrintedLine:
    """A method in a paper, whose operator and images are the paper's own."""

    name: str
    source: str
    cells: list[dict[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A set that is measured in one way.

    Attributes:
        key: names the table in the page's address.
        problem: the set, with its channels and noise, see `problem_title`.
        operator: as rows name it; empty for a table of printed figures.
        about: the operator in words.
        ratios: the columns.
        images: how many the lines have, at least and at most.
        signals: whether they are 1-D signals.
        lines: measured ones.
        printed: out of papers; a table has either these or `lines`.
    """

    key: str
    problem: str
    operator: str
    about: str
    ratios: list[float]
    images: tuple[int, int]
    signals: bool
    lines: list[Line]
    printed: list[PrintedLine]


def board(rows: Iterable[Row], picture: Callable[[Row], tuple[str, str] | None] = lambda row: None) -> list[Table]:
    """The tables of a leaderboard: those of a set one after the other, then what papers print for it.

    Args:
        rows: single results, oldest first.
        picture: addresses of the original and the reconstruction of a row, if they were kept.
    """
    problems: dict[str, dict[str, dict[Setting, list[Row]]]] = defaultdict(lambda: defaultdict(dict))
    for setting, group in by_setting(rows).items():
        problems[problem_title(group[0])][setting.operator][setting] = group
    tables = []
    for problem, operators in problems.items():
        by_size = sorted(operators.items(), key=lambda item: -len(item[1]))
        tables += [_measured(problem, operator, groups, picture) for operator, groups in by_size]
        setting = next(iter(by_size[0][1]))
        printed = [] if setting.noise > 0 or setting.bits is not None else printed_lines(setting)
        if printed:
            tables.append(_printed(problem, printed, WHOLE_SETS.get(setting.dataset, 0)))
    return tables


def _measured(
    problem: str,
    operator: str,
    groups: dict[Setting, list[Row]],
    picture: Callable[[Row], tuple[str, str] | None],
) -> Table:
    summaries = {setting: summary_of(setting, rows) for setting, rows in groups.items()}
    lines = [_line(name, {one: groups[one] for one in part}, picture) for name, part in named(summaries)]
    counts = [summary.images for summary in summaries.values()]
    return Table(
        key=slug(f"{problem} {operator}"),
        problem=problem,
        operator=operator,
        about=operator_in_words(operator),
        ratios=sorted({setting.ratio for setting in groups}),
        images=(min(counts), max(counts)),
        signals=any(setting.channels == "signal" for setting in groups),
        lines=lines,
        printed=[],
    )


def _printed(problem: str, lines: list[PrintedLine], images: int) -> Table:
    ratios = {cell["ratio"] for line in lines for cell in line.cells}
    return Table(
        key=slug(f"{problem} printed"),
        problem=problem,
        operator="",
        about="",
        ratios=sorted(ratio for ratio in ratios if ratio is not None),
        images=(images, images),
        signals=False,
        lines=[],
        printed=lines,
    )


def _line(name: str, groups: dict[Setting, list[Row]], picture: Callable[[Row], tuple[str, str] | None]) -> Line:
    rows = [row for group in groups.values() for row in group]
    pictures = [
        Picture(row.image, row.ratio, row.psnr_db, row.ssim, *addresses)
        for row in sorted(rows, key=lambda row: (row.image, row.ratio))
        if (addresses := picture(row)) is not None
    ]
    return Line(
        name=name,
        methods=sorted({row.method for row in rows}),
        provenance=rows[-1].provenance,
        precision=rows[-1].precision,
        schedule=rows[-1].schedule,
        device=", ".join(sorted({row.device for row in rows})),
        parameters=rows[-1].parameters,
        cells=[_cell(setting, group) for setting, group in sorted(groups.items(), key=lambda item: item[0].ratio)],
        pictures=pictures,
    )


def _cell(setting: Setting, rows: Sequence[Row]) -> Cell:
    summary = summary_of(setting, rows)
    whole = summary.images == WHOLE_SETS.get(setting.dataset)
    measured = summary.measured_ratio
    return Cell(
        ratio=setting.ratio,
        measured_ratio=None if measured is None or fits_ratio(measured, setting.ratio) else measured,
        images=summary.images,
        exact=summary.exact,
        seeds=summary.seeds,
        psnr_db=_estimate(with_finite_psnr(rows), "psnr_db"),
        ssim=_estimate(rows, "ssim"),
        seconds=summary.seconds,
        macs=summary.macs,
        printed=published_figures(setting) if whole else [],
    )


def _estimate(rows: Sequence[Row], score: str) -> Estimate:
    """Of several draws of the operator each image's mean counts, so that the interval is one over images."""
    values = np.array(list(means_by(rows, "image", score).values()))
    return Estimate(float(values.mean()), *confidence_interval(values))


def operator_in_words(operator: str) -> str:
    """What an operator of results is, such as of ``block:33 from checkpoint``."""
    kind, _, source = operator.partition(" from ")
    if source == "checkpoint":
        return "each network with the matrix that its checkpoint carries"
    if source:
        return f"the matrix of {source}"
    names = [name for name in OPERATORS if f"{kind}:".startswith(f"{name}:")]
    return OPERATORS[max(names, key=len)].summary.partition(";")[0] if names else ""


def printed_lines(setting: Setting) -> list[PrintedLine]:
    """What papers print for the set and channels of a setting, a line for each method and source."""
    lines: dict[tuple[str, str], list[dict[str, float | None]]] = defaultdict(list)
    for method, ratio, figure in printed_figures(setting.dataset, setting.channels):
        lines[method, figure.source].append({"ratio": ratio, "psnr_db": figure.psnr_db, "ssim": figure.ssim})
    return [PrintedLine(name=method, source=source, cells=cells) for (method, source), cells in lines.items()]
