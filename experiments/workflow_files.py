"""What the workflow reads: a YAML file for each table or figure of a paper, and what a scale makes of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cs_models.errors import UserError
from datamodules.catalog import find_images, resolve_data_dir
from datamodules.signals import SIGNALS

SCALES = "scales.yaml"


@dataclass(frozen=True)
class Network:
    """A network that is trained.

    Attributes:
        words: options of train.py.
        each_ratio: whether every ratio has a training of its own.
    """

    words: str
    each_ratio: bool = False


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        name: of its file.
        title: what it is in the paper.
        source: how `published.csv` calls it; None where the paper's figures are not transcribed.
        about: how the settings follow from the paper, and what differs.
        ratios: CS ratios.
        datasets: sets of images or signals, those that are at hand.
        missing: those that are not.
        methods: training-free methods.
        networks: trained ones, by name.
        evaluate: options of eval.py.
        train_words: options of train.py that the scale adds.
        paper: what the paper calls the methods and data sets; ``{method: {method: NAME, note: PART OF THE NOTE}}`` and
            ``{dataset: NAME}``.
        columns: what the table shows of each ratio, fields of a summary.
        programs: scripts in ``benchmarks`` with their options, by name; they measure what eval.py does not.
        plot: panels of the figure, see curves.py; without any there is no figure.
        pivot: where the table is one of what the programs wrote, see pivot.py.
    """

    name: str
    title: str
    ratios: tuple[float, ...]
    datasets: tuple[str, ...]
    missing: tuple[str, ...]
    methods: tuple[str, ...]
    networks: dict[str, Network]
    evaluate: str
    train_words: str
    source: str | None = None
    about: str = ""
    paper: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ("psnr_db", "ssim")
    programs: dict[str, str] = field(default_factory=dict)
    plot: list[dict[str, Any]] = field(default_factory=list)
    pivot: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def percents(self) -> list[str]:
        """The ratios as they appear in the names of folders."""
        return [f"{100 * ratio:g}" for ratio in self.ratios]

    @property
    def files(self) -> list[str]:
        """What the experiment ends in."""
        return ["table.md", "figure.png"] if self.plot else ["table.md"]

    @property
    def marks(self) -> list[str]:
        """The files that say that a training, an evaluation or a program has ended."""
        trainings = dict.fromkeys(name for ratio in self.ratios for name in self.networks_at(ratio))
        return [
            *(f"train/{name}/trained" for name in trainings),
            *(f"evaluate/{percent}/evaluated" for percent in self.percents),
            *(f"measure/{name}/measured" for name in self.programs),
        ]

    @property
    def table_marks(self) -> list[str]:
        """Those of the runs whose figures stand in the table."""
        return self.marks if self.pivot else [mark for mark in self.marks if mark.startswith("evaluate/")]

    def networks_at(self, ratio: float) -> list[str]:
        """The trainings whose networks are evaluated at a ratio."""
        return [
            f"{name}_{100 * ratio:g}".replace(".", "p") if network.each_ratio else name
            for name, network in self.networks.items()
        ]

    def training_words(self, training: str) -> str:
        """The options of a training, ready for a shell."""
        for ratio in self.ratios:
            for name, network in zip(self.networks_at(ratio), self.networks.values(), strict=True):
                if name == training:
                    own = f" --model.init_args.training.sampling.ratios=[{ratio}]" if network.each_ratio else ""
                    return shlex.join(shlex.split(network.words + own + " " + self.train_words))
        raise UserError(f"experiment {self.name} has no training '{training}'")

    def evaluation_words(self, ratio: float, trainings: Path) -> str:
        """The options of an evaluation, ready for a shell."""
        networks = [(trainings / name / "model.safetensors").as_posix() for name in self.networks_at(ratio)]
        words = ["--methods", ",".join([*self.methods, *networks]), "--datasets", ",".join(self.datasets)]
        return shlex.join([*words, "--ratios", f"{ratio:g}", *shlex.split(self.evaluate)])


def read_experiments(folder: Path, scale: str, data_dir: str | None) -> dict[str, Experiment]:
    """Every experiment of a folder at a scale, by name.

    Raises:
        UserError: for an unknown scale, or a file that names what there is not.
    """
    scales = yaml.safe_load((folder / SCALES).read_text(encoding="utf-8"))
    if scale not in scales:
        raise UserError(f"unknown scale '{scale}'; choose {', '.join(scales)}")
    files = sorted(path for path in folder.glob("*.yaml") if path.name != SCALES)
    return {path.stem: _read(path, scales, scale, data_dir) for path in files}


def _read(path: Path, scales: dict[str, dict[str, Any]], name: str, data_dir: str | None) -> Experiment:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    # A section of the scale's name replaces what it names.
    at_scale = {name: content.pop(name, {}) for name in scales}
    content |= at_scale[name]
    scale = scales[name]
    tiny, usual = content.pop("tiny_datasets", ["bundled"]), content.pop("datasets", [])
    asked = tiny if usual and scale.get("tiny") else usual
    at_hand = {name: place for name in asked if (place := locate(name, data_dir)) is not None}
    if not at_hand:
        # The data directory is part of the command, so that a wrong one is no reason to lose all other experiments.
        at_hand = {name: name for name in asked}
    networks = {name: Network(**network) for name, network in content.pop("networks", {}).items()}
    networks = dict(list(networks.items())[: scale.get("networks")])
    ratios, words = content.pop("ratios", []), f"{content.pop('evaluate', '')} {scale['evaluate']}"
    data = [] if data_dir is None else ["--data.data_dir", data_dir]
    try:
        return Experiment(
            name=path.stem,
            ratios=tuple(ratios[: scale.get("ratios")]),
            datasets=tuple(at_hand.values()),
            missing=tuple(name for name in asked if name not in at_hand),
            methods=tuple(content.pop("methods", [])[: scale.get("methods")]),
            networks=networks,
            evaluate=words if data_dir is None else f"{words} --data_dir {shlex.quote(data_dir)}",
            train_words=" ".join([scale["train"], *map(shlex.quote, data)]),
            columns=tuple(content.pop("columns", ("psnr_db", "ssim"))),
            **content,
        )
    except TypeError as error:
        raise UserError(f"{path}: {error}") from error


def locate(name: str, data_dir: str | None) -> str | None:
    """What eval.py calls a set that is at hand; None for one that is not.

    Sets that this project does not know are looked for in the data directory: a folder of images, or a table of signals
    there or in ``signals``.
    """
    root = resolve_data_dir(data_dir)
    signals = SIGNALS.get(name)
    if signals is not None:
        return name if signals.file is None or (root / signals.file).exists() else None
    for table in (root / folder / f"{name}{suffix}" for folder in (".", "signals") for suffix in (".npy", ".csv")):
        if table.exists():
            return str(table)
    try:
        find_images(name, data_dir)
    except UserError:
        return None
    return name


def without_ratio(name: str, ratio: float) -> str:
    """The name of a network in its file, of a training for one ratio without that."""
    return name.removesuffix(f"_{100 * ratio:g}".replace(".", "p"))
