"""The table of an experiment: our figures, and the paper's beside them.

``python experiments/table.py NAME SCALE FOLDER... --out FOLDER`` joins results folders of eval.py, and writes
``table.md``, ``table.csv`` and, in ``report``, the report with its figures.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

from workflow_files import Experiment, read_experiments, without_ratio

from cs_models.errors import UserError
from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.report.merge import merge
from cs_models.evaluation.report.summary import PUBLISHED, Summary, summarise
from cs_models.evaluation.report.wandb_runs import short_name
from cs_models.evaluation.results import ResultsFile, write_table

FORMATS = {"psnr_db": "{:.2f}", "ssim": "{:.4f}", "pcc": "{:.3f}", "seconds": "{:.3g}", "images_per_second": "{:.3g}"}
UNITS = {
    "psnr_db": "PSNR in dB",
    "ssim": "SSIM",
    "pcc": "PCC",
    "seconds": "seconds",
    "images_per_second": "images a second",
}

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
        name = without_ratio(short_name(one.method), one.ratio)
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
        cell = " / ".join(_show(column, ours[column]) for column in experiment.columns)
        beside = " / ".join(_show(column, value) for column, value in theirs.items() if column in ours)
        cells[name, one.dataset][one.ratio] = f"{cell} ({beside})" if beside else cell
    header = ["method", "data set", *(f"{ratio:g}" for ratio in experiment.ratios)]
    rows = [[*key, *(by_ratio.get(ratio, "") for ratio in experiment.ratios)] for key, by_ratio in cells.items()]
    units = " / ".join(UNITS.get(column, column) for column in experiment.columns)
    sections = [f"# {experiment.title}", f"{units}; in brackets what the paper prints. Scale: {scale}."]
    if experiment.source is None:
        sections.append("The paper's figures of this table are not transcribed, so ours stand alone.")
    if experiment.missing:
        sections.append(f"Not at hand: {', '.join(experiment.missing)}. A folder or table of this name is taken.")
    return "\n\n".join([*sections, markdown_table(header, rows), experiment.about.strip()]).strip() + "\n", lines


def published(experiment: Experiment) -> dict[Key, dict[str, float]]:
    """What the paper prints, by its own names and part of the note."""
    figures: dict[Key, dict[str, float]] = {}
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["source"] != experiment.source:
                continue
            for name, paper in experiment.paper.get("methods", {}).items():
                if paper["method"] == line["method"] and paper.get("note", "") in line["note"]:
                    values = {"psnr_db": line["psnr_db"], "ssim": line["ssim"]}
                    key = name, line["dataset"], float(line["ratio"])
                    figures[key] = {column: float(value) for column, value in values.items() if value}
    return figures


def _key(experiment: Experiment, method: str, dataset: str, ratio: float) -> Key:
    return method, experiment.paper.get("datasets", {}).get(dataset, dataset), ratio


def _show(column: str, value: float | None) -> str:
    return "" if value is None else FORMATS.get(column, "{:g}").format(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("scale")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--data_dir")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    try:
        experiment = read_experiments(Path(__file__).parent, words.scale, words.data_dir)[words.name]
        merge(words.folders, words.out / "report")
        page, lines = table(experiment, summarise(ResultsFile(words.out / "report").rows()), words.scale)
        write_table(words.out / "table.csv", ["method", "dataset", "ratio", "figure", "ours", "paper"], lines)
        (words.out / "table.md").write_text(page, encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
