"""The command line that the scripts of the workflow share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from workflow_files import Experiment, read_experiments

from cs_models.errors import UserError, report

Write = Callable[[Experiment, str, list[Path], Path], None]
"""Writes something of an experiment at a scale, from the folders of its runs, into a folder."""


def run(folder: Path, about: str | None, write: Write) -> int:
    """Take ``NAME SCALE FOLDER... --out FOLDER`` and write.

    Args:
        folder: of the YAML files.
        about: the script's docstring.
        write: see `Write`.

    Returns:
        the exit status.
    """
    parser = argparse.ArgumentParser(description=about and about.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("scale")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--data_dir")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    try:
        write(read_experiments(folder, words.scale, words.data_dir)[words.name], words.scale, words.folders, words.out)
    except UserError as error:
        return report(error)
    return 0
