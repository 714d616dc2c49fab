"""The table of an experiment: our figures, and the paper's beside them.

``python experiments/table.py NAME SCALE FOLDER... --out FOLDER`` joins results folders of eval.py, and writes
``table.md``, ``table.csv`` and, in ``report``, the report with its figures.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from command import run
from measured import read_lines
from pivot import pivoted
from safetensors import safe_open
from workflow_files import Experiment

from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.report.merge import merge
from cs_models.evaluation.report.summary import PUBLISHED, Summary, summarise
from cs_models.evaluation.report.wandb_runs import short_name
from cs_models.evaluation.results import TABLE, ResultsFile, write_table

FORMATS = {
    "psnr_db": "{:.2f}",
    "ssim": "{:.4f}",
    "pcc": "{:.3f}",
    "seconds": "{:.3g}",
    "images_per_second": "{:.3g}",
    "parameters": "{:.0f}",
}
UNITS = {
    "psnr_db": "PSNR in dB",
    "ssim": "SSIM",
    "pcc": "PCC",
    "seconds": "seconds",
    "images_per_second": "images a second",
    "peak_memory_mb": "memory on the GPU in MiB",
    "macs": "multiply-adds in billions",
}
BILLION = 1e9

Key = tuple[str, str, float]
"""Method, data set and ratio, as the paper calls them."""


def table(experiment: Experiment, summaries: list[Summary], scale: str) -> tuple[str, list[list[str]]]:
    """The page, and its lines: method, set, ratio, column, ours, the paper's.

    Args:
        experiment: what the table is.
        summaries: our figures.
        scale: at which they were computed.
    """
    printed = published(experiment)
    cells: dict[tuple[str, str], dict[float, str]] = defaultdict(dict)
    lines = []
    for one in summaries:
        name = experiment.shown(short_name(one.method), one.ratio)
        theirs = printed.get(_key(experiment, name, one.dataset, one.ratio), {})
        ours = {column: getattr(one, column) for column in experiment.columns}
        lines += [
            [
                name,
                one.dataset,
                f"{one.ratio:g}",
                column,
                _show(column, ours[column]),
                _show(column, theirs.get(column)),
            ]
            for column in experiment.columns
        ]
        cell = " / ".join(_in_page(column, ours[column]) for column in experiment.columns)
        beside = " / ".join(_in_page(column, value) for column, value in theirs.items() if column in ours)
        cells[name, one.dataset][one.ratio] = f"{cell} ({beside})" if beside else cell
    units = " / ".join(UNITS.get(column, column) for column in experiment.columns)
    counts = {one.dataset: one.images for one in summaries}
    images = ", ".join(f"{count} of {dataset}" for dataset, count in counts.items())
    sections = [
        f"# {experiment.title}",
        f"{units}; in brackets what the paper prints. Scale: {scale}; means over {images}.",
    ]
    if experiment.source is None:
        sections.append("The paper's figures of this table are not transcribed, so ours stand alone.")
    if experiment.missing:
        missing = ", ".join(experiment.missing)
        sections.append(f"Not at hand: {missing}. A folder or file of this name in the data directory is taken.")
    sections += [_by_ratio(experiment, "method", cells), experiment.about.strip()]
    return "\n\n".join(sections).strip() + "\n", lines


def _by_ratio(experiment: Experiment, first: str, cells: Mapping[tuple[str, str], Mapping[float, str]]) -> str:
    """A table with a line for each method and data set, and a column for each ratio."""
    ratios = sorted(experiment.ratios)  # the first one is what other scales and programs take
    header = [first, "data set", *(f"{ratio:g}" for ratio in ratios)]
    rows = [[*key, *(by_ratio.get(ratio, "") for ratio in ratios)] for key, by_ratio in cells.items()]
    return markdown_table(header, rows)


def rivals(experiment: Experiment) -> str:
    """What the paper prints of methods that are not run here, on the same sets; empty if nothing."""
    ours = experiment.paper.get("methods", {}).values()
    sets = {experiment.paper.get("datasets", {}).get(name, name) for name in experiment.datasets}
    cells: dict[tuple[str, str], dict[float, str]] = defaultdict(dict)
    for line in _lines_of(experiment.source):
        run = any(_is(paper, line) for paper in ours)
        if not run and line["dataset"] in sets and float(line["ratio"]) in experiment.ratios:
            printed = " / ".join(filter(None, (line["psnr_db"], line["ssim"])))
            cells[line["method"], line["dataset"]][float(line["ratio"])] = printed
    if not cells:
        return ""
    table = _by_ratio(experiment, "printed in the paper", cells)
    return f"Methods that are not run here, as the paper prints them:\n\n{table}"


def trainings(experiment: Experiment, folders: Sequence[Path]) -> str:
    """What the trainings took; empty if there are none."""
    rows = []
    for folder in folders:
        if folder.name in experiment.trainings:
            with safe_open(folder / "model.safetensors", framework="numpy") as file:
                made = json.loads(file.metadata()["cs_models"])["provenance"]
            steps, hours = int(made["steps"]), float(made["seconds"]) / 3600
            rows.append([folder.name, f"{steps:,}", f"{hours:.2f}", f"{3600 * hours / steps:.3g}", made["precision"]])
    if not rows:
        return ""
    return markdown_table(["training", "steps", "hours", "seconds a step", "precision"], rows)


def measurements(experiment: Experiment, folders: Sequence[Path]) -> str:
    """The table of what programs measured, or of what eval.py wrote beside its own; empty if there is none."""
    pivot = experiment.pivot
    if not pivot or not any((folder / f"{pivot['table']}.csv").exists() for folder in folders):
        return ""
    header, rows = pivoted(pivot, read_lines(folders, pivot["table"], pivot.get("where")))
    return f"{' / '.join(pivot['values'])}:\n\n{markdown_table(header, rows)}"


def published(experiment: Experiment) -> dict[Key, dict[str, float]]:
    """What the paper prints, by its own names and part of the note."""
    figures: dict[Key, dict[str, float]] = {}
    for line in _lines_of(experiment.source):
        for name, paper in experiment.paper.get("methods", {}).items():
            if _is(paper, line):
                values = {"psnr_db": line["psnr_db"], "ssim": line["ssim"]}
                key = name, line["dataset"], float(line["ratio"])
                figures[key] = {column: float(value) for column, value in values.items() if value}
    return figures


def _lines_of(source: str | None) -> list[dict[str, str]]:
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if line["source"] == source]


def _is(paper: dict[str, str], line: dict[str, str]) -> bool:
    """Whether a printed figure is that of a method as an experiment names it."""
    return paper["method"] == line["method"] and paper.get("note", "") in line["note"]


def _key(experiment: Experiment, method: str, dataset: str, ratio: float) -> Key:
    return method, experiment.paper.get("datasets", {}).get(dataset, dataset), ratio


def _show(column: str, value: float | None) -> str:
    return "" if value is None else FORMATS.get(column, "{:g}").format(value)


def _in_page(column: str, value: float | None) -> str:
    """The same for a reader: in the unit of the page, and a dash for what was not measured."""
    if value is None:
        return "-"
    return f"{value / BILLION:.3g}" if column == "macs" else _show(column, value)


def write(experiment: Experiment, scale: str, folders: Sequence[Path], out: Path) -> None:
    """Write the page, its table, and the report on all results, anew: those of an earlier one may have changed."""
    shutil.rmtree(out / "report", ignore_errors=True)
    merge([folder for folder in folders if (folder / TABLE).exists()], out / "report")
    page, lines = table(experiment, summarise(ResultsFile(out / "report").rows()), scale)
    more = measurements(experiment, folders), trainings(experiment, folders), rivals(experiment)
    page = "\n\n".join([page.strip(), *filter(None, more)]) + "\n"
    write_table(out / "table.csv", ["method", "dataset", "ratio", "figure", "ours", "paper"], lines)
    (out / "table.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run(Path(__file__).parent, __doc__, write))
