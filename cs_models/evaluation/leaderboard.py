"""The leaderboard, a page that opens from disk: ``cs-models leaderboard RESULTS... --out site``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cs_models import __version__
from cs_models.errors import CommandParser, UserError, report
from cs_models.evaluation.pictures import Pictures, copy_picture
from cs_models.evaluation.report.board import board
from cs_models.evaluation.report.tables import PROTOCOL, SIGNALS
from cs_models.evaluation.results import ResultsFile, Row, identity
from cs_models.files import replacing

PARTS = Path(__file__).parent / "report" / "page"
PAGE = "index.html"
MARK = 'content="cs-models leaderboard"'
READING = """\
Small figures are 95 % bootstrap intervals of the mean over images. They say how much it depends on the choice of the
images, which differ much in difficulty; the difference of two methods on the same images is known better than that.
Bold is the best of a column among the lines that are shown and have all images. Tables of different operators were
measured differently. A click on a method shows the rest: cost at each ratio, sources of printed figures, and images."""
COST = """\
MACs are multiply-adds of a network for one image of the set. Seconds are those of one image on the device that is
named, with whatever else it was doing; a range is over the ratios."""


def write_site(folders: Sequence[Path], out: Path) -> Path:
    """Write the page, and beside it the pictures that results folders kept.

    Args:
        folders: results folders of `eval.py`, oldest first; of a method whose settings changed the later rows count.
        out: folder of the page.

    Returns:
        the page.

    Raises:
        UserError: if a folder has no results, or the page cannot be written or would replace something else.
    """
    if any(folder.resolve() == out.resolve() for folder in folders):
        raise UserError(f"--out {out} is one of the results folders; choose another")
    page = out / PAGE
    _check_replaceable(page)
    rows: list[Row] = []
    places: dict[tuple[str, ...], tuple[int, Path]] = {}
    for index, folder in enumerate(folders):
        for row in ResultsFile(folder).rows():
            rows.append(row)
            if row.channels != "signal" and Pictures.of_row(folder, row).exist():
                places[identity(row)] = index, folder

    def picture(row: Row) -> tuple[str, str] | None:
        if identity(row) not in places:
            return None
        index, folder = places[identity(row)]
        return _copied(Pictures.of_row(folder, row), folder, out, str(index))

    tables = [asdict(table) for table in board(rows, picture)]
    if not tables:
        raise UserError(f"{', '.join(map(str, folders))}: no results yet; run eval.py with --out {folders[0]}")
    signals = [SIGNALS] if any(table["signals"] for table in tables) else []
    notes = [READING, PROTOCOL, *signals, COST, f"Made by cs-models {__version__}."]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(page) as partial:
            partial.write_text(render({"tables": tables, "notes": notes}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {page}: {error.strerror}") from error
    return page


def render(content: dict[str, Any]) -> str:
    """The page with everything that it needs but pictures.

    Args:
        content: `tables`, of `Table` as dictionaries, and `notes`, paragraphs of text.
    """
    files = ("leaderboard.html", "base.css", "leaderboard.css", "leaderboard.js")
    page, base, style, script = ((PARTS / name).read_text(encoding="utf-8").strip() for name in files)
    page = page.replace("[style]", f"{base}\n{style}").replace("[script]", script)
    # Last, for it may hold any text.
    return page.replace("[data]", to_json(content))


def to_json(value: Any) -> str:
    """JSON that can stand inside a ``<script>``: no text in it ends the element or begins a comment."""
    return json.dumps(_finite(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """The same value with what JSON has no number for: infinity as a text that JavaScript reads as one, NaN as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value


def _copied(pictures: Pictures, folder: Path, out: Path, place: str) -> tuple[str, str]:
    """The addresses of an original and its reconstruction beside the page, where they are copied to."""
    addresses = []
    for source in (pictures.original, pictures.reconstruction):
        address = Path("images", place, source.relative_to(folder / "images"))
        copy_picture(source, out / address)
        addresses.append(address.as_posix())
    return addresses[0], addresses[1]


def _check_replaceable(page: Path) -> None:
    """Raise UserError if there is a page that is no leaderboard."""
    try:
        if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"{page} exists and is no leaderboard; choose another --out")
    except OSError as error:
        raise UserError(f"cannot read {page}: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = CommandParser(
        prog="cs-models leaderboard",
        description="Make a page of results that opens in a browser, without a server or a network.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULTS", help="results folders, oldest first")
    parser.add_argument("--out", required=True, type=Path, help="folder for the page")
    try:
        options = parser.parse_args(arguments)
        print(write_site(options.folders, options.out))
    except UserError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
