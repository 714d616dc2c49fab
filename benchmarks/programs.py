"""Benchmarks that measure whole processes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cs_models.errors import UserError


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
