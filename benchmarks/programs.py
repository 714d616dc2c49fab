"""What benchmarks share that measure whole processes, or for hours."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cs_models.errors import UserError
from cs_models.evaluation.results import to_text, write_table


class GrowingTable:
    """A CSV file with a line for each case that was measured; a rerun computes what it lacks."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """
        Args:
            path: of the file; its folder is made.
            columns: of the case first, then those of what is measured.

        Raises:
            UserError: if the file has other columns.
        """
        self._path, self._columns = path, list(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: list[list[str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                header, *self._lines = csv.reader(file)
            if header != self._columns:
                raise UserError(f"{path} is another kind of table; choose another --out")

    def line(self, case: Sequence[object], measure: Callable[[], Mapping[str, object]]) -> dict[str, str]:
        """The cells of a case by column; `measure` is called if there are none, and the file written."""
        known = [to_text(value) for value in case]
        line = next((line for line in self._lines if line[: len(known)] == known), None)
        if line is None:
            measured = measure()
            line = known + [to_text(measured[name]) for name in self._columns[len(known) :]]
            self._lines.append(line)
            write_table(self._path, self._columns, self._lines)
        return dict(zip(self._columns, line, strict=True))


def run_program(words: Sequence[str], folder: Path | None = None) -> str:
    """Run a Python program in a process of its own.

    Args:
        words: the program's file and its arguments.
        folder: to run it in; where it is not given, the current one.

    Returns:
        what it printed.

    Raises:
        UserError: if it failed, with the last line of its errors.
    """
    run = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"{words[0]} ended with exit status {run.returncode}"]
        raise UserError(lines[-1].removeprefix("error: "))
    return run.stdout


def peak_resident_bytes() -> float:
    """Largest resident set that this process has had; nan on Windows, where Python does not know it."""
    if sys.platform == "win32":
        return math.nan
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, KiB elsewhere
