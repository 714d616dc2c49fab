"""Tables of numbers in text files, as loggers, spreadsheets, pandas, MATLAB and WFDB write them.

What a file leaves open is asked for in one line, and answered behind the file's name: ``log.csv:columns=a+b``.
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cs_models.errors import UserError, first_line, nearest
from cs_models.host_memory import check_memory
from datamodules.numerals import decimal_mark, is_missing, is_number, to_number

logger = logging.getLogger(__name__)

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
DECIMALS = ("point", "comma")
# First columns of these names count the samples or say when they were taken; a unit may follow.
_TIMES = re.compile(
    r"(index|sample( ?#| ?number|s)?|(elapsed |sample ?)?time|t|time ?stamp|date([ _/]?time)?|seconds?|zeit|datum)"
    r"([ _]?(\(.*\)|\[.*\]|/?(s|sec|ms|us|min|h|utc)))?",
    re.IGNORECASE,
)
# A date, a time of day or both.
_WHEN = re.compile(r"\[?\d[\d.]*[:/-]\d[\d.:/ TZ+-]*\]?")
# So many samples on a straight line are taken for an index, and so many characters in a name for a mistake.
_RAMP, _LONGEST_NAME = 11, 200


@dataclass(frozen=True)
class TableOptions:
    """How a table is to be read, where the file leaves it open; None means that it is found out.

    Attributes:
        columns: the columns that are signals, by name (their number from 0 where the file has no names), separated by
            ``+``; ``all`` for every one.
        comment: what the lines begin with that are passed over.
        decimal: ``point`` or ``comma``; the other one may separate thousands.
        encoding: of the text, such as ``latin-1`` or ``utf-16``.
        header: ``yes`` if the first line holds names although they look like numbers, ``no`` if it holds samples.
        missing: a number that stands for a missing sample.
        separator: ``comma``, ``semicolon``, ``tab``, ``bar`` or ``space``.
        skip: how many lines lie before the table.
    """

    columns: str | None = None
    comment: str = "#"
    decimal: str | None = None
    encoding: str | None = None
    header: str | None = None
    missing: float | None = None
    separator: str | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("decimal", DECIMALS), ("separator", SEPARATORS), ("header", ("yes", "no"))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise UserError(f"{name}={value}: expected {' or '.join(choices)}")
        if self.skip < 0:
            raise UserError(f"skip={self.skip}: expected a number of lines")
        try:
            b"1".decode(self.encoding or "utf-8")
        except UnicodeError:
            pass  # a known encoding of more than one byte
        except (LookupError, ValueError):
            raise UserError(f"encoding={self.encoding}: unknown; utf-8, utf-16 and latin-1 are usual") from None


def parse_options(words: str) -> TableOptions:
    """Read ``key=value:key=value``; an empty text gives the defaults.

    Raises:
        UserError: for an unknown key or a value of another kind.
    """
    known = [field.name for field in fields(TableOptions)]
    values: dict[str, object] = {}
    for word in filter(None, words.split(":")):
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise UserError(f"cannot read '{word}'; options are written FILE:key=value{nearest(key, known)}")
        try:
            values[key] = {"missing": float, "skip": int}.get(key, str)(value)
        except ValueError:
            raise UserError(f"cannot read '{word}'; expected a number") from None
    return TableOptions(**values)  # type: ignore[arg-type]


class Table(NamedTuple):
    """Columns of numbers: their names, and the values ``(N, n)``, NaN where one is missing."""

    names: list[str]
    values: npt.NDArray[np.float64]


def read_table(path: Path, options: TableOptions = TableOptions()) -> Table:
    """Read a table with a signal per column.

    A first column that only counts the samples or says when they were taken is left out, and the log says so, where
    its name, its lack of one (as pandas writes an index) or its dates leave no doubt.

    Args:
        path: the file.
        options: see `TableOptions`.

    Raises:
        UserError: if the file is unreadable, too large for the memory, no table of numbers, or one that can be read
            in two ways.
    """
    try:
        check_memory(8 * path.stat().st_size, "its text")
        lines = _lines(_decode(path, options.encoding), options)
        separator = _separator(lines, options)
        check_memory(100 * (len(lines) + sum(line.count(separator or ",") for line in lines)), "the table")
        names, rows = _named_rows(_split(lines, separator), options)
        columns = list(zip(*rows, strict=True))
        del rows
        chosen = _chosen(path.name, names, columns, options)
        values = _numbers([names[index] for index in chosen], [columns[index] for index in chosen], options)
        if options.columns is None and len(chosen) > 1 and _is_time(names[chosen[0]], values[0]):
            logger.warning(
                "%s: left out its first column '%s', a time; else say :columns=all", path.name, names[chosen[0]]
            )
            chosen, values = chosen[1:], values[1:]
        return Table([names[index] for index in chosen], values)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or first_line(error)}") from error
    except csv.Error as error:
        raise UserError(f"'{path}' is no table of numbers: {first_line(error)}") from error


def _decode(path: Path, encoding: str | None) -> str:
    """The text of a file: UTF-8, what its first bytes say, else Latin-1."""
    content = path.read_bytes()
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    chosen = encoding or next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(chosen)
    except ValueError as error:
        if chosen != "utf-8" or encoding:
            raise UserError(
                f"it is not in {chosen} ({first_line(error)}); name another, as in :encoding=latin-1"
            ) from None
        logger.warning("%s is not in UTF-8; it is read as Latin-1, else say it, as in :encoding=utf-16", path.name)
        text = content.decode("latin-1")
    strange = re.search(r"[\x00-\x08\x0e-\x1f]", text)
    if strange:
        raise UserError("it is no text in UTF-8; if it is text, name its encoding, as in :encoding=utf-16-le")
    return text


def _lines(text: str, options: TableOptions) -> list[str]:
    """The lines of the table, without comments and without empty ones around it."""
    text = text.replace("\u2212", "-").removeprefix("\ufeff")
    lines = io.StringIO(text, newline=None).read().split("\n")[options.skip :]
    if options.comment:
        lines = [line for line in lines if not line.lstrip().startswith(options.comment)]
    full = [index for index, line in enumerate(lines) if line.strip()]
    if full and re.fullmatch(r'"?sep=.?"?', lines[full[0]].strip(), re.IGNORECASE):
        del full[0]  # how spreadsheets are told the separator
    if not full:
        raise UserError("it is empty")
    return lines[full[0] : full[-1] + 1]


def _separator(lines: Sequence[str], options: TableOptions) -> str:
    """What stands between the cells; empty for a single column, a blank for any white space."""
    if options.separator is not None:
        return SEPARATORS[options.separator]
    sample = [line for line in lines[:50] if line.strip()]
    usual = [mark for mark in ";\t|" if all(mark in line for line in sample)]
    if usual:
        return usual[0]
    if _single_decimals(sample, options):
        return ""
    first = max(",;\t|", key=sample[0].count)
    if first in sample[0]:
        return first
    words = {len(line.split()) for line in sample}
    if len(words) == 1 and words != {1} and all(is_number(word) for word in sample[-1].split()):
        if not all(is_number(line.strip()) for line in sample[1:] or sample):
            return " "
        if options.decimal is None:
            raise UserError("blanks separate columns or thousands; say :separator=space or :decimal=point")
        return ""
    last = max(",;\t|", key=sample[-1].count)
    return last if last in sample[-1] else ""


def _single_decimals(lines: Sequence[str], options: TableOptions) -> bool:
    """Whether lines such as ``1,5`` are one column with a decimal comma, below a name or without one.

    Raises:
        UserError: where they may as well be two columns of whole numbers.
    """
    has_name = not re.search(r"[,;\t|]", lines[0])
    numbers = lines[1:] if has_name else lines
    if options.header == "yes" and not has_name:
        return False
    if options.decimal == "point" or not all(re.fullmatch(r"\s*[+-]?\d*,\d+\s*", line) for line in numbers):
        return False
    certain = has_name or options.decimal == "comma" or any(re.search(r",0\d|^\s*[+-]?,", line) for line in numbers)
    if numbers and not certain:
        raise UserError(
            "each of its lines is one number with a decimal comma or two whole ones; say :decimal=comma or "
            ":decimal=point"
        )
    return bool(numbers)


def _split(lines: Sequence[str], separator: str) -> list[list[str]]:
    """Cells without blanks and single quotes around them (WFDB writes those)."""
    if not separator:
        rows = [[line] for line in lines]
    elif separator == " ":
        rows = [line.split() for line in lines if line.strip()]
    else:
        rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    quoted = any("'" in line for line in lines)
    return [[_unquoted(cell.strip()) if quoted else cell.strip() for cell in row] for row in rows]


def _unquoted(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] and cell[0] in "'\"" else cell


def _named_rows(rows: list[list[str]], options: TableOptions) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and rows of as many cells each."""
    first = rows[0]
    named = options.header == "yes" or (options.header is None and (_are_names(first) or _heads_an_index(rows)))
    if named:
        rows = rows[1:]
        if len(rows) > 1 and _are_names(rows[0]) and not any(_WHEN.fullmatch(cell) for cell in rows[0]):
            logger.warning("took the line below the names for units: %s", _short(", ".join(rows[0])))
            rows = rows[1:]
    while rows and len(first) > 1 and not any(rows[-1]):
        rows.pop()  # lines of separators, which spreadsheets leave below a table
    if not rows:
        raise UserError("it has names but no samples")
    # A separator at the end of every line begins no column.
    lengths = [_length(row) for row in rows]
    width = max(1, max(lengths), _length(first) if named else 0)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if length > len(first) or len(row) < width <= len(first):
            hint = "; if other lines lie before the table, say how many, as in :skip=2" if number < 2 else ""
            count, expected = (length, len(first)) if length > len(first) else (len(row), width)
            raise UserError(f"sample {number} has {count} values, expected {expected}{hint}")
        del row[width:]
    names = first[:width] if named else numbered(width)
    if len(longest := max(names, key=len)) > _LONGEST_NAME:
        raise UserError(f"the name '{_short(longest)}' has {len(longest)} characters; {_LONGEST_NAME} are allowed")
    return names, rows


def _length(row: Sequence[str]) -> int:
    """How many cells there are up to the last one that is not empty."""
    return next((index for index in range(len(row), 0, -1) if row[index - 1]), 0)


def _are_names(cells: Sequence[str]) -> bool:
    numbers = any(is_number(cell) or is_number(cell, "comma") for cell in cells)
    return not numbers and not all(map(is_missing, cells))


def _heads_an_index(rows: Sequence[Sequence[str]]) -> bool:
    """Whether there is nothing in the first line above a column that counts from 0, as pandas writes an index."""
    if rows[0][0] or len(rows[0]) < 2 or len(rows) < 3:
        return False
    return all(row[0] == str(number) for number, row in enumerate(rows[1:]))


def numbered(count: int) -> list[str]:
    """Names for that many signals without one: 0, 1, ... with as many digits each."""
    width = len(str(count - 1))
    return [f"{index:0{width}d}" for index in range(count)]


def _chosen(file: str, names: Sequence[str], columns: Sequence[Sequence[str]], options: TableOptions) -> list[int]:
    """The columns that the options name; else all but an index without a name and dates, which are no numbers."""
    every = list(range(len(names)))
    if options.columns == "all":
        return every
    if options.columns is not None:
        words = [options.columns] if options.columns in names else options.columns.split("+")
        return list(dict.fromkeys(_column(word, names) for word in words))
    present = [cell for cell in columns[0] if not is_missing(cell)]
    dates = bool(present) and all(_WHEN.fullmatch(cell) for cell in present)
    if len(names) > 1 and (names[0] in ("", "Unnamed: 0") or dates):
        logger.warning("%s: left out its first column '%s', an index; else say :columns=all", file, names[0])
        return every[1:]
    return every


def _column(word: str, names: Sequence[str]) -> int:
    """Place of a column, by its name or by its number from 0."""
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word[:9]) < len(names):
        return int(word)
    raise UserError(f"it has no column '{word}'{nearest(word, names[:20])}")


def _rises_evenly(values: npt.NDArray[np.float64]) -> bool:
    """Whether samples rise and stay within a step of a straight line, as times do that were rounded in writing."""
    line = np.linspace(values[0], values[-1], len(values))
    return bool(len(values) > 1 and (np.diff(values) > 0).all() and (np.abs(values - line) < line[1] - line[0]).all())


def _is_time(name: str, values: npt.NDArray[np.float64]) -> bool:
    """Whether a first column is a time or an index by its name and its values.

    Raises:
        UserError: where the values alone say so.
    """
    if _TIMES.fullmatch(name):
        return bool((np.diff(values) > 0).all())
    if len(values) >= _RAMP and _rises_evenly(values):
        raise UserError(
            f"its first column '{_short(name)}' rises in equal steps, as a time or an index does; name the signals, "
            "as in :columns=1+2 (counted from 0), or :columns=all"
        )
    return False


def _numbers(names: Sequence[str], columns: Sequence[Sequence[str]], options: TableOptions) -> npt.NDArray[np.float64]:
    """The values of columns ``(N, n)``."""
    values = np.empty((len(columns), len(columns[0])))
    decimal: str | None = options.decimal
    try:
        if decimal == "comma" or any("_" in cell for column in columns for cell in column):
            raise ValueError
        for index, column in enumerate(columns):
            values[index] = list(map(float, column))
        return values
    except ValueError:  # numbers that Python does not read, missing ones, or no numbers
        decimal = decimal or decimal_mark(cell for column in columns for cell in column)
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        for row, cell in enumerate(column):
            try:
                values[index, row] = np.nan if is_missing(cell) else to_number(cell, decimal)
            except ValueError:
                raise UserError(
                    f"'{_short(cell)}' in column '{name}', sample {row}, is not a number; choose the signals, as in "
                    ":columns=a+b"
                ) from None
    return values


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
