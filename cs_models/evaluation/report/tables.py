"""The report: tables as Markdown, with what was measured, how it was scored, and what papers report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cs_models.evaluation.protocol import fits_ratio
from cs_models.evaluation.report.figures import draw_figures, problem_title
from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.report.statistics import Difference, paired_differences, write_differences
from cs_models.evaluation.report.summary import Summary, label, summarise, variant, write_summary
from cs_models.evaluation.report.web import write_pages
from cs_models.evaluation.results import Row

PROTOCOL = """\
Luminance is the BT.601 full-range Y of OpenCV as 8-bit values; pixels / 255; reconstructions are clipped to [0, 1].
PSNR is on the unrounded 0-255 scale from a float64 MSE; SSIM is scikit-image's default (7x7 uniform window, data range
255). Values are means over images of the values of single images. Seconds are those of the reconstruction alone, on a
device that does nothing else; networks, and everything on a GPU, run once untimed before the first image of each size.
Methods marked bf16 convolve in bfloat16; all else is float32 with all of its bits, without TF32."""


SIGNALS = """\
Signals are scaled to [0, 1] each by its own smallest and largest value, and reconstructions are clipped to it. Their
PSNR has a peak of 1; their SSIM is the CLOMP paper's in 1-D (Gaussian window of 11 taps, sigma 1.5, C1 = (0.06 R)^2,
C2 = (0.1 R)^2, R the range of the signal); PCC is Pearson's correlation. `per_image.csv` has a line for each signal
with its MSE and its sparse rates too."""


def write_report(rows: Sequence[Row], out: Path) -> str:
    """Write ``summary.csv``, ``differences.csv``, ``report.md``, ``report.html`` and the figures.

    Args:
        rows: single results, oldest first.
        out: the results folder.

    Returns:
        the tables and where the files are, for the terminal.

    Raises:
        UserError: if a file cannot be written.
    """
    summaries = summarise(rows)
    differences = paired_differences(rows)
    write_summary(summaries, out / "summary.csv")
    write_differences(differences, out / "differences.csv")
    figures = draw_figures(rows, summaries, out)
    tables = quality_tables(summaries)
    sections = [
        "# Comparison of reconstructions",
        PROTOCOL,
        *([SIGNALS] if any(row.channels == "signal" for row in rows) else []),
        f"Computed on: {', '.join(sorted({row.device for row in rows}))}.",
        tables,
        *published_section(summaries),
        *(f"![{path.stem}](figures/{path.name})" for path in figures),
        *differences_section(differences),
        *seeds_section(summaries),
        "## Cost",
        cost_table(summaries),
    ]
    files = [*write_pages(out, "report", sections), *figures]
    return tables + "\n\n" + "\n".join(map(str, files))


def quality_tables(summaries: Sequence[Summary]) -> str:
    """A table for each problem: a line for each method and operator, a column for each ratio."""
    problems: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        problems[problem_title(summary)].append(summary)
    sections = []
    for title, group in problems.items():
        ratios = sorted({summary.ratio for summary in group})
        cells: dict[tuple[str, str], dict[float, Summary]] = defaultdict(dict)
        for summary in group:
            cells[variant(summary), summary.operator][summary.ratio] = summary
        lines = [
            [method, f"{operator}{_measured(by_ratio)}", *(_quality(by_ratio.get(ratio)) for ratio in ratios)]
            for (method, operator), by_ratio in cells.items()
        ]
        counts = sorted({summary.images for summary in group})
        noun, scores = ("images", "SSIM") if group[0].pcc is None else ("signals", "SSIM / PCC")
        images = f"{counts[0]} {noun}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} {noun}"
        sections.append(f"## {title}: PSNR in dB / {scores} ({images})")
        sections.append(markdown_table(["method", "operator", *(f"{ratio:g}" for ratio in ratios)], lines))
        exact = max(summary.exact for summary in group)
        if exact:
            sections.append(f"Up to {exact} of them are reconstructed without error, and left out of the mean PSNR.")
    return "\n\n".join(sections)


def published_section(summaries: Sequence[Summary]) -> list[str]:
    """Our PSNR beside the published one, where set, ratio and channels match; every source."""
    lines = [
        [
            variant(one),
            one.dataset,
            f"{one.ratio:g}",
            f"{one.psnr_db:.2f}",
            f"{one.published_psnr_db:.2f}",
            f"{one.difference_db:+.2f}",
            str(one.images),
            one.source,
        ]
        for one in summaries
        if one.published_psnr_db is not None and one.difference_db is not None
    ]
    header = ["method", "dataset", "ratio", "ours", "published", "difference", "images", "sources"]
    return ["## Published figures (PSNR in dB)", markdown_table(header, lines)] if lines else []


def differences_section(differences: Sequence[Difference]) -> list[str]:
    """Paired differences with their confidence intervals."""
    lines = [
        [
            item.dataset,
            f"{item.ratio:g}",
            item.method,
            item.other,
            f"{item.difference_db:+.2f}",
            "" if item.low_db is None or item.high_db is None else f"{item.low_db:+.2f} .. {item.high_db:+.2f}",
            f"{100 * item.wins:.0f} % of {item.images}",
        ]
        for item in differences
    ]
    header = ["dataset", "ratio", "method", "against", "difference in dB", "95 % interval", "better on"]
    return ["## Paired differences (bootstrap over images)", markdown_table(header, lines)] if lines else []


def seeds_section(summaries: Sequence[Summary]) -> list[str]:
    """Spread of the mean over several draws of the operator."""
    lines = [
        [label(one), one.dataset, f"{one.ratio:g}", str(one.seeds), f"{one.psnr_db:.2f} ± {one.psnr_seed_std:.2f}"]
        for one in summaries
        if one.psnr_seed_std is not None
    ]
    header = ["method", "dataset", "ratio", "draws", "PSNR in dB ± standard deviation over draws"]
    return ["## Draws of the operator", markdown_table(header, lines)] if lines else []


def cost_table(summaries: Sequence[Summary]) -> str:
    """Time, parameters, operations and memory."""
    lines = [
        [
            label(one),
            one.dataset,
            f"{one.ratio:g}",
            _optional(one.measured_ratio, lambda real: f"{real:.3g}"),
            f"{one.seconds:.3g}",
            f"{one.images_per_second:.3g}",
            f"{one.parameters:,}",
            _optional(one.macs, lambda macs: f"{macs / 1e9:.3g}"),
            _optional(one.iterations, lambda count: f"{count:.4g}"),
            _optional(one.peak_memory_mb, lambda memory: f"{memory:.0f}"),
        ]
        for one in summaries
    ]
    header = [
        "method",
        "dataset",
        "ratio",
        "measured",
        "seconds per image",
        "images per second",
        "parameters",
        "giga multiply-adds",
        "iterations",
        "GPU memory in MiB",
    ]
    return markdown_table(header, lines)


def _measured(by_ratio: Mapping[float, Summary]) -> str:
    """What an operator really measures, where that is more than a tenth off what was asked for."""
    measured = {ratio: one.measured_ratio for ratio, one in by_ratio.items() if one.measured_ratio is not None}
    if all(fits_ratio(real, ratio) for ratio, real in measured.items()):
        return ""
    return f" (measures {', '.join(f'{real:.3g} at {ratio:g}' for ratio, real in sorted(measured.items()))})"


def _quality(summary: Summary | None) -> str:
    if summary is None:
        return ""
    correlation = "" if summary.pcc is None else f" / {summary.pcc:.4f}"
    return f"{summary.psnr_db:.2f} / {summary.ssim:.4f}{correlation}"


def _optional(value: float | None, show: Callable[[float], str]) -> str:
    return "" if value is None else show(value)
