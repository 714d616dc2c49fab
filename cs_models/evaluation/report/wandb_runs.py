"""What Weights & Biases is told of a results folder: which runs it is, their names and metrics, and ids that stay."""

from __future__ import annotations

import json
import os
import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from cs_models.errors import UserError
from cs_models.evaluation.report.summary import Summary, current_rows
from cs_models.evaluation.results import Row
from cs_models.files import replacing
from cs_models.zoo.methods import CHECKPOINT_SUFFIXES, METHODS, split_settings
from cs_models.zoo.wandb_weights import WEIGHTS

IDS = "wandb_runs.json"
# Files that every training has, in folders that every training has; what tells trainings apart stands before them.
USUAL_NAMES = ("model", "last", "checkpoints")


class Variant(NamedTuple):
    """A method as it was run, which is one run; the operator is empty where it need not tell two of them apart."""

    method: str
    precision: str
    schedule: str
    noise: float
    bits: int | None
    operator: str = ""

    @property
    def name(self) -> str:
        """A name without paths."""
        words = [short_name(self.method), self.schedule and f"({self.schedule})"]
        words += [self.precision if self.precision != "fp32" else "", f"noise {self.noise:g}" if self.noise else ""]
        words += ["" if self.bits is None else f"{self.bits} bits", self.operator and f"[{self.operator}]"]
        return " ".join(filter(None, words))


def by_run(rows: Sequence[Row]) -> dict[Variant, list[Row]]:
    """The rows that count, by run: within one, a set and a ratio occur once."""
    groups: dict[Variant, list[Row]] = defaultdict(list)
    for row in current_rows(rows):
        groups[Variant(row.method, row.precision, row.schedule, row.noise, row.bits)].append(row)
    runs: dict[Variant, list[Row]] = {}
    for variant, group in groups.items():
        parts: dict[str, list[Row]] = defaultdict(list)
        for row in group:
            parts[row.operator if _measured_twice(group) else ""].append(row)
        runs |= {variant._replace(operator=operator): part for operator, part in parts.items()}
    return runs


def _measured_twice(rows: Sequence[Row]) -> bool:
    """Whether a set was measured by several operators at one ratio."""
    measured = {(row.dataset, row.channels, row.ratio, row.operator) for row in rows}
    return len({problem[:-1] for problem in measured}) < len(measured)


def short_name(method: str) -> str:
    """A method without the folders of its file: ``r_coast`` of ``runs/r_coast/model.safetensors``."""
    if method.startswith(WEIGHTS):
        return method.rpartition("/")[2]
    if not method.endswith(CHECKPOINT_SUFFIXES):
        return method
    parts = PurePath(method).with_suffix("").parts
    return next((part for part in reversed(parts) if part not in USUAL_NAMES), parts[-1])


def metric_prefix(summary: Summary) -> str:
    """How the metrics of a set begin, the same for every method: ``Set11``, or ``Set11 rgb``."""
    return summary.dataset.replace("/", "_") + (" rgb" if summary.channels == "rgb" else "")


def metrics(summaries: Sequence[Summary]) -> dict[str, float]:
    """Every figure of a run under ``SET/RATIO/MEASURE``."""
    names = ("psnr_db", "psnr_std", "ssim", "ssim_std", "pcc", "mse", "seconds", "iterations", "macs",
             "peak_memory_mb", "published_psnr_db", "difference_db")  # fmt: skip
    return {
        f"{metric_prefix(one)}/{one.ratio:g}/{name}": value
        for one in summaries
        for name in names
        if (value := getattr(one, name)) is not None
    }


def configuration(variant: Variant, rows: Sequence[Row]) -> dict[str, Any]:
    """What is peculiar to a run, for tables of runs and for sweeps."""
    settings = {}
    if split_settings(variant.method)[0] in METHODS:
        settings = {
            key: _number(value)
            for key, _, value in (part.partition("=") for part in split_settings(variant.method)[1:])
        }
    return {
        "method": variant.method,
        "settings": settings,
        "settings_key": rows[-1].settings_key,
        "operators": sorted({row.operator for row in rows}),
        "parameters": rows[-1].parameters,
        **{name: getattr(variant, name) for name in ("precision", "schedule", "noise", "bits")},
    }


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class RunIds:
    """The ids of a folder's runs, kept in a file beside the results, so that a rerun continues its runs.

    Attributes:
        out: the results folder.
        project: of Weights & Biases; ids belong to one.
        resume: "allow" continues runs that the folder knows and starts others, "must" only continues, "never" starts
            new ones.
    """

    out: Path
    project: str
    resume: Literal["allow", "must", "never"]

    def choose(self, name: str) -> tuple[str, str | None]:
        """The id of a run, and how Weights & Biases is to look for it.

        Raises:
            UserError: if there is none but must be, or the file cannot be read or written.
        """
        known = self._read()
        given = known.get(self.project, {}).get(name)
        if self.resume == "must" and given is None:
            raise UserError(f"--wandb_resume must: {self.out} has no run '{name}' in {self.project}; allow starts one")
        if given is None or self.resume == "never":
            given = secrets.token_hex(4)
            known.setdefault(self.project, {})[name] = given
            self._write(known)
        return given, None if self.resume == "never" else self.resume

    def _read(self) -> dict[str, dict[str, str]]:
        path = self.out / IDS
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}; delete it to start new runs") from error
        if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
            raise UserError(f"{path} does not hold the ids of runs; delete it to start new ones")
        return content

    def _write(self, known: dict[str, dict[str, str]]) -> None:
        path = self.out / IDS
        try:
            with replacing(path) as partial:
                partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error


def agents_run() -> str | None:
    """The id that an agent of a sweep, or the user, chose for the run of this program."""
    return os.environ.get("WANDB_RUN_ID")
