"""The table of an experiment whose figures come from scripts in ``benchmarks``.

``python experiments/pivot.py NAME SCALE FOLDER... --out FOLDER`` writes ``table.md`` and ``table.csv``, as the section
``pivot`` of its YAML file says: ``table`` (name of the CSV files), ``rows`` (columns that make a line), ``across`` (the
column whose values stand side by side), ``values`` (the columns that are shown) and, if need be, ``where``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measured import Line, grouped, mean, read_lines, values
from workflow_files import Experiment, read_experiments

from cs_models.errors import UserError
from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.results import write_table

FORMATS = {"psnr_db": "{:.2f}", "ssim": "{:.3f}", "pcc": "{:.3f}", "largest_batch": "{:.0f}"}
NOT_TRANSCRIBED = "The paper's plots are not transcribed, so our figures stand alone."


def pivoted(pivot: dict[str, Any], lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table."""
    columns = values(lines, pivot["across"])
    header = [*pivot["rows"], *(f"{pivot['across']} {column}" for column in columns)]
    rows = []
    for names, group in grouped(lines, pivot["rows"]).items():
        cells = grouped(group, [pivot["across"]])
        rows.append([*names, *(_cell(cells.get((column,), []), pivot["values"]) for column in columns)])
    return header, rows


def page(experiment: Experiment, lines: Sequence[Line], scale: str) -> tuple[str, list[str], list[list[str]]]:
    """The page, and the header and lines of its table."""
    pivot = experiment.pivot
    header, rows = pivoted(pivot, lines)
    about = (
        f"{' / '.join(pivot['values'])}. Scale: {scale}. The paper's plots are not transcribed, so ours stand alone."
    )
    sections = [f"# {experiment.title}", about, markdown_table(header, rows), experiment.about.strip()]
    return "\n\n".join(sections).strip() + "\n", header, rows


def _cell(lines: Sequence[Line], columns: Sequence[str]) -> str:
    means = {column: mean(lines, column) for column in columns}
    return " / ".join("" if mean is None else FORMATS.get(name, "{:.3g}").format(mean) for name, mean in means.items())


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
        lines = read_lines(words.folders, experiment.pivot["table"], experiment.pivot.get("where"))
        text, header, rows = page(experiment, lines, words.scale)
        write_table(words.out / "table.csv", header, rows)
        (words.out / "table.md").write_text(text, encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
