"""The table of an experiment whose figures come from scripts in ``benchmarks``.

``python experiments/pivot.py NAME SCALE FOLDER... --out FOLDER`` writes ``table.md`` and ``table.csv``, as the section
``pivot`` of its YAML file says: ``table`` (name of the CSV files), ``rows`` (columns that make a line), ``across`` (the
column whose values stand side by side), ``values`` (the columns that are shown) and, if need be, ``where``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command import run
from measured import Line, grouped, mean, read_lines, values
from workflow_files import Experiment

from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.results import write_table

FORMATS = {"psnr_db": "{:.2f}", "ssim": "{:.3f}", "pcc": "{:.3f}", "largest_batch": "{:.0f}"}


def pivoted(pivot: dict[str, Any], lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table."""
    columns = values(lines, pivot["across"])
    header = [*pivot["rows"], *(f"{pivot['across']} {column}" for column in columns)]
    rows = []
    for names, group in grouped(lines, pivot["rows"]).items():
        cells = grouped(group, [pivot["across"]])
        rows.append([*map(_short, names), *(_cell(cells.get((column,), []), pivot["values"]) for column in columns)])
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


def _short(name: str) -> str:
    """A measured number to four digits; anything else as it is."""
    try:
        return f"{float(name):.4g}" if "." in name else name
    except ValueError:
        return name


def _cell(lines: Sequence[Line], columns: Sequence[str]) -> str:
    return " / ".join("" if (one := mean(lines, column)) is None else _number(column, one) for column in columns)


def _number(column: str, value: float) -> str:
    """A mean to three digits, or to its last whole one."""
    return FORMATS.get(column, "{:.0f}" if abs(value) >= 100 else "{:.3g}").format(value)


def write(experiment: Experiment, scale: str, folders: Sequence[Path], out: Path) -> None:
    """Write the page and its table."""
    lines = read_lines(folders, experiment.pivot["table"], experiment.pivot.get("where"))
    text, header, rows = page(experiment, lines, scale)
    write_table(out / "table.csv", header, rows)
    (out / "table.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run(Path(__file__).parent, __doc__, write))
