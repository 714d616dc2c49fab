"""Join results folders into one: ``python -m cs_models.evaluation.report.merge OUT1 OUT2 --out REPORT``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from cs_models.errors import CommandParser, UserError, report
from cs_models.evaluation.pictures import Pictures, copy_picture
from cs_models.evaluation.report.tables import write_report
from cs_models.evaluation.results import ResultsFile, Row, identity, only_writer


def merge(folders: Sequence[Path], out: Path) -> str:
    """Gather the rows and pictures of several results folders, and report on all of them.

    Rows that folders share are taken once. Of a method whose settings changed the later folder's rows count.

    Args:
        folders: results folders, oldest first.
        out: a folder of its own; what it already holds stays.

    Returns:
        the tables and where the files are, for the terminal.

    Raises:
        UserError: if a folder has no results or the report cannot be written.
    """
    if any(folder.resolve() == out.resolve() for folder in folders):
        raise UserError(f"--out {out} is one of the folders to merge; choose another")
    gathered = [(folder, ResultsFile(folder).rows()) for folder in folders]
    with only_writer(out):
        table = ResultsFile(out)
        table.repair()
        known = {identity(row) for row in table.rows()}
        for folder, rows in gathered:
            for row in rows:
                if identity(row) not in known:
                    table.append(row)
                    known.add(identity(row))
                _copy_pictures(row, folder, out)
        return write_report(table.rows(), out)


def _copy_pictures(row: Row, folder: Path, out: Path) -> None:
    sources, targets = astuple(Pictures.of_row(folder, row)), astuple(Pictures.of_row(out, row))
    for source, target in zip(sources, targets, strict=True):
        if source.exists() and not target.exists():
            copy_picture(source, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = CommandParser(
        prog="python -m cs_models.evaluation.report.merge",
        description="Join results folders of eval.py into one report.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="results folders, oldest first")
    parser.add_argument("--out", required=True, type=Path, help="folder for the joint report")
    try:
        options = parser.parse_args(arguments)
        print(merge(options.folders, options.out))
    except UserError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
