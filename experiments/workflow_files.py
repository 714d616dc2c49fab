"""What the workflow reads: a YAML file for each table or figure of a paper, and what a scale makes of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from trainings import NETWORKS, Chosen, Network, at_scale, choose, read_networks

from cs_models.errors import UserError
from datamodules.catalog import find_images, resolve_data_dir
from datamodules.signals import SIGNALS

SCALES = "scales.yaml"
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


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
        networks: trained ones.
        evaluate: options of eval.py.
        paper: what the paper calls the methods and data sets; ``{method: {method: NAME, note: PART OF THE NOTE}}`` and
            ``{dataset: NAME}``.
        columns: what the table shows of each ratio, fields of a summary.
        programs: scripts in ``benchmarks``, or subcommands of ``cs-models``, with their options, by name; they measure
            what eval.py does not. ``{NETWORK}`` is a trained network of the experiment at its first ratio, ``{image}``
            the first image of its first set.
        plot: panels of the figure, see curves.py; without any there is no figure.
        pivot: a table of what the programs wrote, see pivot.py.
        evaluated: off, the networks are for the programs alone.
        data_dir: folder of the data sets; None for the usual one.
    """

    name: str
    title: str
    ratios: tuple[float, ...]
    datasets: tuple[str, ...]
    missing: tuple[str, ...]
    methods: tuple[str, ...]
    networks: tuple[Chosen, ...]
    evaluate: str
    source: str | None = None
    about: str = ""
    paper: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ("psnr_db", "ssim")
    programs: dict[str, str] = field(default_factory=dict)
    plot: list[dict[str, Any]] = field(default_factory=list)
    pivot: dict[str, Any] = field(default_factory=dict)
    evaluated: bool = True
    data_dir: str | None = None

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
        """The files that say that a training, an evaluation or a program has ended; experiments share trainings."""
        return [
            *(f"train/{name}/trained" for name in self.trainings),
            *(f"{self.name}/evaluate/{percent}/evaluated" for percent in self.percents if self.compared),
            *(f"{self.name}/measure/{name}/measured" for name in self.programs),
        ]

    @property
    def compared(self) -> bool:
        """Whether there is anything to evaluate: programs may be all there is, or need networks alone."""
        return bool(self.methods or self.networks) and self.evaluated

    @property
    def trainings(self) -> dict[str, str]:
        """The options of every training, ready for a shell, by its name."""
        return {
            one.training(ratio): shlex.join(shlex.split(one.words(ratio)))
            for ratio in self.ratios
            for one in self._networks_at(ratio)
        }

    def networks_at(self, ratio: float) -> list[str]:
        """The trainings whose networks are evaluated at a ratio."""
        return [one.training(ratio) for one in self._networks_at(ratio)]

    def _networks_at(self, ratio: float) -> list[Chosen]:
        return [one for one in self.networks if one.exists_at(ratio)]

    def shown(self, method: str, ratio: float) -> str:
        """What tables call a method: a network by its name in the experiment, not by that of its training."""
        known = {one.training(ratio): one.label for one in self.networks}
        return known.get(method, method)

    def program_words(self, program: str, trainings: Path) -> str:
        """What the interpreter is called with for a program, ready for a shell, but for the output folder."""
        places = {
            one.name: (trainings / one.training(self.ratios[0]) / "model.safetensors").as_posix()
            for one in self.networks
        }
        if "{image}" in self.programs[program]:
            places["image"] = self._first_image()
        first, *others = shlex.split(self.programs[program])
        start = ["-m", "cs_models"] if first == "cs-models" else [str(BENCHMARKS / first)]
        return shlex.join([*start, *(word.format(**places) for word in others)])

    def _first_image(self) -> str:
        try:
            return str(find_images(self.datasets[0], self.data_dir)[0].path)
        except UserError:  # no reason to lose all other experiments; the program will say so
            return self.datasets[0]

    def evaluation_words(self, ratio: float, trainings: Path) -> str:
        """The options of an evaluation, ready for a shell."""
        networks = [(trainings / name / "model.safetensors").as_posix() for name in self.networks_at(ratio)]
        words = [
            "--methods",
            ",".join(dict.fromkeys([*self.methods, *networks])),
            "--datasets",
            ",".join(self.datasets),
        ]
        return shlex.join([*words, "--ratios", f"{ratio:g}", *shlex.split(self.evaluate)])


def read_experiments(folder: Path, scale: str, data_dir: str | None) -> dict[str, Experiment]:
    """Every experiment of a folder at a scale, by name.

    Raises:
        UserError: for an unknown scale, or a file that names what there is not.
    """
    scales = yaml.safe_load((folder / SCALES).read_text(encoding="utf-8"))
    if scale not in scales:
        raise UserError(f"unknown scale '{scale}'; choose {', '.join(scales)}")
    files = sorted(path for path in folder.glob("*.yaml") if path.name not in (SCALES, NETWORKS))
    networks = {name: at_scale(one, scales[scale], data_dir) for name, one in read_networks(folder).items()}
    return {path.stem: _read(path, scales, scale, networks, data_dir) for path in files}


def _read(
    path: Path, scales: dict[str, dict[str, Any]], name: str, known: dict[str, Network], data_dir: str | None
) -> Experiment:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    # A section of the scale's name replaces what it names.
    sections = {name: content.pop(name, {}) for name in scales}
    content |= sections[name]
    scale = scales[name]
    tiny, usual = content.pop("tiny_datasets", ["bundled"]), content.pop("datasets", [])
    asked = tiny if usual and scale.get("tiny") else usual
    at_hand = {name: place for name in asked if (place := locate(name, data_dir)) is not None}
    if not at_hand:
        # The data directory is part of the command, so that a wrong one is no reason to lose all other experiments.
        at_hand = {name: name for name in asked}
    networks = content.pop("networks", [])[: scale.get("networks")]
    weights = content.pop("weights", {})
    found = {option: file for option, file in weights.items() if (resolve_data_dir(data_dir) / file).is_file()}
    ratios, words = content.pop("ratios", []), [content.pop("evaluate", ""), scale["evaluate"]]
    if "evaluate" in sections[name]:  # what a file says of a scale comes last, where it overrides what the scale says
        words.reverse()
    words += [f"--{option} {shlex.quote(str(resolve_data_dir(data_dir) / file))}" for option, file in found.items()]
    words += [] if data_dir is None else [f"--data_dir {shlex.quote(data_dir)}"]
    try:
        return Experiment(
            name=path.stem,
            ratios=tuple(ratios[: scale.get("ratios")]),
            datasets=tuple(at_hand.values()),
            missing=tuple(name for name in [*asked, *weights.values()] if name not in [*at_hand, *found.values()]),
            methods=tuple(content.pop("methods", [])[: scale.get("methods")]),
            networks=tuple(choose(name, known) for name in networks),
            evaluate=" ".join(words),
            data_dir=data_dir,
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
