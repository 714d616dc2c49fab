"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def is_file(path: str | Path) -> bool:
    """Whether there is a file of this name; no for names that no system takes, for which `Path.is_file` raises."""
    return os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder of this name; no for names that no system takes, for which `Path.is_dir` raises."""
    return os.path.isdir(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place and rename it into it, so that no reader sees half of one.

    If writing fails, the file that was there before stays, and nothing of the new one.

    Yields:
        the path to write to.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def shipped(folder: str) -> Path:
    """A folder of files that come with the project, ``configs`` or ``checkpoints``.

    A wheel holds it inside the package; in a checkout it lies beside the package.
    """
    package = Path(__file__).resolve().parent
    inside = package / "shipped" / folder
    return inside if inside.is_dir() else package.parent / folder
