"""What the files and folders of a user are called in tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cs_models.errors import UserError


def readable(name: str) -> str:
    r"""A name with bytes that are not UTF-8 written as \xNN, since tables and reports hold it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def origin_of(path: Path) -> str:
    """What tells a user's folder or file from others of its name: its whole path."""
    return readable(str(path.resolve()))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The names of the files of one folder: their stems, or whole names where two share a stem.

    Raises:
        UserError: where two would have one name, which results could not tell apart.
    """
    stems = Counter(path.stem for path in paths)
    names = [readable(path.stem if stems[path.stem] == 1 else path.name) for path in paths]
    if len(set(names)) < len(names):
        names = [readable(path.name) for path in paths]
    (name, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise UserError(f"'{paths[0].parent}' has {count} images that would be called '{name}'; rename them")
    return names
