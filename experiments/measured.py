"""Tables that runs have written, read as they are: lines of text by column.

These are ``per_image.csv`` of eval.py, ``metrics.csv`` of Lightning's CSVLogger, and what scripts in ``benchmarks``
write. The table ``signals`` is made of the reconstructed signals beside ``per_image.csv``: a line for each sample.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from trainings import Network, percent, read_networks

from cs_models.arrays import read_npy
from cs_models.errors import UserError
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.report.wandb_runs import short_name
from cs_models.evaluation.results import ResultsFile

SIGNALS = "signals"

Line = dict[str, str]
"""The cells of a line by column, in ``run`` the name of the folder of its table, and a network's settings by name."""


def read_lines(folders: Sequence[Path], table: str, where: dict[str, Any] | None = None) -> list[Line]:
    """The lines of one kind of table in all folders that have it, in order.

    Args:
        folders: of runs.
        table: name of the files, without ``.csv``, or `SIGNALS`.
        where: what cells of a column have to be, a value or a list of them.

    Raises:
        UserError: if no line is left.
    """
    if table == SIGNALS:
        lines = [line for folder in folders for line in _read_signals(folder)]
    else:
        paths = [path for folder in folders if (path := folder / f"{table}.csv").exists()]
        networks = read_networks(Path(__file__).parent)
        lines = [line for path in paths for line in _read(path, networks)]
    found = [line for line in lines if all(_fits(line, column, wanted) for column, wanted in (where or {}).items())]
    if not found:
        raise UserError(f"no line of {table}.csv in {', '.join(map(str, folders))} has {where or 'any cell'}")
    return found


def cell(line: Line, column: str) -> str:
    """What a line has in a column.

    Raises:
        UserError: if there is no such column.
    """
    if column not in line:
        raise UserError(f"there is no column '{column}'; the columns are {', '.join(line)}")
    return line[column]


def grouped(lines: Iterable[Line], columns: Sequence[str]) -> dict[tuple[str, ...], list[Line]]:
    """Lines by what they have in some columns, in order of appearance."""
    groups: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        groups[tuple(cell(line, column) for column in columns)].append(line)
    return dict(groups)


def mean(lines: Iterable[Line], column: str) -> float | None:
    """The mean of the cells that are not empty; None where all are."""
    numbers = [float(text) for line in lines if (text := cell(line, column))]
    return fmean(numbers) if numbers else None


def values(lines: Iterable[Line], column: str) -> list[str]:
    """What a column holds: numbers by size, words in order of appearance."""
    found = list(dict.fromkeys(cell(line, column) for line in lines))
    return sorted(found, key=float) if all(map(is_number, found)) else found


def without_ratio(name: str, ratio: float) -> str:
    """The name of a network in its file, of a training for one ratio without that."""
    return name.removesuffix(f"_{percent(ratio)}")


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(path: Path, networks: Mapping[str, Network]) -> list[Line]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = [{"run": path.parent.name} | line for line in csv.DictReader(file)]
    for line in lines:
        if "method" in line:
            line["method"] = name = without_ratio(short_name(line["method"]), float(line.get("ratio") or 0))
            if name in networks:
                line |= {setting: str(value) for setting, value in networks[name].settings.items()}
    return lines


def _read_signals(folder: Path) -> Iterator[Line]:
    """The samples of signals with pictures in a results folder: the original of each, and what methods made."""
    originals = set()
    for row in ResultsFile(folder).rows():
        pictures = Pictures.of_row(folder, row)
        if row.channels != "signal" or not pictures.exist():
            continue
        files = [(row.method, pictures.reconstruction)]
        if pictures.original not in originals:
            files.insert(0, ("original", pictures.original))
            originals.add(pictures.original)
        for method, path in files:
            facts = {"run": folder.name, "method": method, "dataset": row.dataset, "ratio": f"{row.ratio:g}"}
            for sample, value in enumerate(read_npy(path)):
                yield facts | {"sample": str(sample), "value": f"{value:.6g}"}


def _fits(line: Line, column: str, wanted: Any) -> bool:
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(_same(cell(line, column), str(one)) for one in choices)


def _same(a: str, b: str) -> bool:
    return float(a) == float(b) if is_number(a) and is_number(b) else a == b
