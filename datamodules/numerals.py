"""Numbers as people and programs write them: decimal points and commas, separated thousands, marks of missing ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from cs_models.errors import UserError

Decimal = Literal["point", "comma"]

_MISSING = frozenset(
    (
        "",
        "na",
        "n/a",
        "#n/a",
        "<na>",
        "nan",
        "-nan",
        "+nan",
        "nat",
        "null",
        "none",
        "nil",
        "missing",
        "-",
        "--",
        "?",
        ".",
    )
)
_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eEdD][+-]?\d+)?|[+-]?inf(?:inity)?", re.ASCII | re.IGNORECASE)
_BLANKS = " '\u00a0\u202f\u2019"
# Thousands in groups of three, by what stands between the whole and the fractional part.
_GROUPED = {
    "point": re.compile(rf"[+-]?\d{{1,3}}(?:(?:,\d{{3}})+|(?:[{_BLANKS}]\d{{3}})+)(?:\.\d*)?", re.ASCII),
    "comma": re.compile(rf"[+-]?\d{{1,3}}(?:(?:\.\d{{3}})+|(?:[{_BLANKS}]\d{{3}})+)(?:,\d*)?", re.ASCII),
}
_GROUPS = {"point": str.maketrans("", "", f",{_BLANKS}"), "comma": str.maketrans("", "", f".{_BLANKS}")}


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value: empty, NaN, NA, null, a dash, ..."""
    return cell.lower() in _MISSING


def to_number(cell: str, decimal: str = "point") -> float:
    """The number in a cell without blanks around it.

    Args:
        cell: digits, a sign, an exponent, or "inf"; underscores, which Python allows, do not belong to a number.
        decimal: ``"point"`` or ``"comma"``; the other one, blanks and apostrophes may separate thousands.

    Raises:
        ValueError: for anything else.
    """
    text = cell.translate(_GROUPS[decimal]) if _GROUPED[decimal].fullmatch(cell) else cell
    if decimal == "comma":
        text = text.replace(".", "?").replace(",", ".")
    if not _PLAIN.fullmatch(text):
        raise ValueError(cell)
    return float(text if "d" not in text.lower() else text.lower().replace("d", "e"))


def is_number(cell: str, decimal: str = "point") -> bool:
    """Whether `to_number` reads a cell."""
    try:
        to_number(cell, decimal)
    except ValueError:
        return False
    return True


def decimal_mark(cells: Iterable[str]) -> Decimal:
    """What stands between the whole and the fractional part of numbers, as far as they show it; a point if they do not.

    Raises:
        UserError: where ``1,234`` may be a little more than one or over a thousand.
    """
    doubtful = ""
    for cell in cells:
        points, commas = cell.count("."), cell.count(",")
        if points and commas:
            return "point" if cell.rindex(".") > cell.rindex(",") else "comma"
        if points > 1 or commas > 1:
            if is_number(cell, "comma" if points else "point"):
                return "comma" if points else "point"
        elif commas and re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell):
            doubtful = doubtful or cell
        elif commas and is_number(cell, "comma"):
            return "comma"
        elif points and is_number(cell) and not is_number(cell, "comma"):
            return "point"
    if doubtful:
        raise UserError(
            f"'{doubtful}' has a decimal comma or separates thousands; say :decimal=comma or :decimal=point"
        )
    return "point"
