"""Put a trained network into ``checkpoints/``, and write the cards that say what it achieves.

``cs-models cards add runs/r_coast r_coast --hardware "one H200"`` copies the weights of a training with its
configuration (`NAME.yaml`) and its log (`NAME.csv`). ``cs-models cards write OUT1 OUT2`` gathers the figures of the
zoo's networks from results folders of `eval.py` in ``checkpoints/results.csv`` and writes ``checkpoints/README.md``;
with ``--released OUT3`` they stand beside those of the authors' weights, which are ``NAME.safetensors`` or
``NAME_*.safetensors`` there.
"""

from __future__ import annotations

import csv
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml

from cs_models.errors import CommandParser, UserError, first_line, report
from cs_models.evaluation.operations import CountOperations
from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.report.summary import summarise
from cs_models.evaluation.results import ResultsFile, Row, from_text, to_text, write_table
from cs_models.training.module import ReconstructionModule
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import load_checkpoint
from cs_models.zoo.methods import ZOO, zoo

RESULTS = ZOO / "results.csv"
HEAD = """\
# Networks that are trained here

`eval.py --methods NAME` and `cs_models.load("NAME")` find them by name, `--methods zoo` means all of them. Beside each
`NAME.safetensors` lie `NAME.yaml`, what it was trained with, and `NAME.csv`, validation during training. This page is
written by `cs-models cards write OUT...` from results folders of `eval.py`. Training never saw Set11, CBSD68, or the
bundled photographs. *Published* is what the paper prints, *released* what its authors' weights give in the leaderboard.

PSNR on the bundled photographs at each network's lowest ratio, over the steps of its last training:

![PSNR over training steps](training.png)"""


Compared = tuple[str, str, float, int]
"""Network, set, ratio and number of images: what figures have in common that stand side by side."""


@dataclass(frozen=True)
class Figures:
    """What a network gives on a set of images; a line of ``results.csv``.

    The fields are those of `Summary`, and `released_psnr_db`, what the authors' weights give on the same images.
    """

    method: str
    dataset: str
    ratio: float
    operator: str
    precision: str
    images: int
    psnr_db: float
    ssim: float
    published_psnr_db: float | None
    difference_db: float | None
    source: str
    seconds: float | None = None
    released_psnr_db: float | None = None

    @property
    def compared(self) -> Compared:
        """See `Compared`."""
        return self.method, self.dataset, self.ratio, self.images


logger = logging.getLogger(__name__)
COLUMNS = tuple(field.name for field in fields(Figures))


def add(run: Path, name: str, hardware: str, folder: Path = ZOO) -> Path:
    """Copy what a training wrote into the zoo.

    Args:
        run: folder of the training, with `model.safetensors`, `config.yaml` and `metrics.csv`.
        name: of the network in the zoo; a last part ``_10`` says that it is for 10 % alone.
        hardware: what it was trained on, for the card.
        folder: the zoo.

    Raises:
        UserError: if a file is missing or damaged.
    """
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"'{name}' cannot be the name of a network in the zoo; take letters, digits, _ and -")
    module = load_checkpoint(run / "model.safetensors")
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.DictReader(file) if line.get("val/psnr")]
        kept = {part: dict(config[part]) for part in ("model", "data", "trainer")}
        kept["trainer"] = {
            key: kept["trainer"][key] for key in ("max_steps", "max_epochs", "precision", "gradient_clip_val")
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, csv.Error) as error:
        reason = first_line(error)
        raise UserError(f"cannot read the training in {run}: {type(error).__name__}, {reason}") from error
    if not lines:
        raise UserError(f"{run}/metrics.csv has no validation; train with a validation set")
    module.provenance |= {"hardware": hardware}
    path = save_checkpoint(module, folder / f"{name}.safetensors")
    # Where files were on the machine of the training says nothing about the training.
    kept["data"].pop("data_dir", None)
    training = kept["model"].get("init_args", {}).get("training", {})
    if training.get("start_from"):
        training["start_from"] = Path(training["start_from"]).name
    path.with_suffix(".yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    columns = ["step", *sorted(key for key in lines[0] if key.startswith("val/") and lines[0][key])]
    write_table(path.with_suffix(".csv"), columns, [[line[column] for column in columns] for line in lines])
    return path


def write_cards(folders: Sequence[Path], folder: Path = ZOO, released: Path | None = None) -> Path:
    """Write ``results.csv`` and ``README.md`` of the zoo.

    Args:
        folders: results folders of `eval.py`; where they disagree the last one counts. Networks that are in none of
            them keep their lines of the present ``results.csv``; the others lose, with a warning, what is in none of
            them, since their weights may be new.
        folder: the zoo.
        released: results folder with figures of released weights; without it those of ``results.csv`` stay.

    Raises:
        UserError: if a network of the zoo has no results.
    """
    rows = [row for out in folders for row in ResultsFile(out).rows()]
    names = zoo(folder)
    measured = [column for column in COLUMNS if column != "released_psnr_db"]
    found = [Figures(**{column: getattr(summary, column) for column in measured}) for summary in summarise(rows)]
    fresh, before = {one.method for one in found}, read_figures(folder / RESULTS.name)
    again = {one.compared for one in found}
    lost = [one for one in before if one.method in fresh and one.compared not in again]
    found += [one for one in before if one.method not in fresh]
    if released is None:
        theirs = {one.compared: one.released_psnr_db for one in before}
    else:
        theirs = _of_released(ResultsFile(released).rows(), names)
    found = [replace(one, released_psnr_db=theirs.get(one.compared)) for one in found]
    missing = sorted(names.keys() - {one.method for one in found})
    if missing:
        raise UserError(f"no results for {', '.join(missing)}; run eval.py --methods zoo")
    by_network = {name: [one for one in found if one.method == name] for name in names}
    lines = [[to_text(value) for value in astuple(one)] for figures in by_network.values() for one in figures]
    write_table(folder / RESULTS.name, COLUMNS, lines)
    if lost:
        places = ", ".join(f"{one.method} on {one.dataset} at {one.ratio:g}" for one in lost)
        logger.warning("%s lost what these folders lack: %s", RESULTS.name, places)
    cards = [card(name, files, by_network[name]) for name, files in names.items()]
    draw_training(names, folder / "training.png")
    path = folder / "README.md"
    path.write_text("\n\n".join([HEAD, *cards]) + "\n", encoding="utf-8")
    return path


def _of_released(rows: Iterable[Row], names: Iterable[str]) -> dict[Compared, float | None]:
    """PSNR in dB that released weights of networks' names give."""
    summaries = [one for one in summarise(rows) if one.provenance == "released"]
    return {
        (name, one.dataset, one.ratio, one.images): one.psnr_db
        for name in names
        for one in summaries
        if f"{Path(one.method).stem}_".startswith(f"{name}_")
    }


def read_figures(path: Path) -> list[Figures]:
    """The lines of a ``results.csv``; none where there is no such file."""
    if not path.is_file():
        return []
    kinds = get_type_hints(Figures)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Figures(**{key: from_text(text, kinds[key]) for key, text in line.items()}) for line in csv.DictReader(file)
        ]


def draw_training(names: Mapping[str, Mapping[int | None, Path]], path: Path) -> None:
    """Draw the validation PSNR of every network over its training steps, at the lowest of its ratios."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes = figure.subplots()
    for weights in (file for files in names.values() for file in files.values()):
        log = weights.with_suffix(".csv")
        if not log.exists():
            continue
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lowest = min(column for column in rows[0] if column.startswith("val/psnr_"))
        steps = [int(row["step"]) + 1 for row in rows]
        axes.plot(steps, [float(row[lowest]) for row in rows], marker="o", label=f"{weights.stem}, {lowest[9:]} %")
    axes.set(xlabel="step", ylabel="PSNR in dB")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    figure.savefig(path, dpi=110)


def card(name: str, files: dict[int | None, Path], figures: Sequence[Figures]) -> str:
    """What a network is, how it was trained, and what it gives."""
    parts = [f"## {name}"]
    for percent, path in files.items():
        module = load_checkpoint(path)
        parameters = sum(parameter.numel() for parameter in module.network.parameters())
        operations = f"{multiply_adds(module, (percent or 10) / 100):,} multiply-adds per pixel"
        facts = [f"**{path.name}**: {parameters:,} parameters, {operations}, {path.stat().st_size / 2**20:.1f} MiB"]
        config = path.with_suffix(".yaml")
        if config.exists():
            facts.append(_training(yaml.safe_load(config.read_text(encoding="utf-8")), module.provenance))
        parts.append(". ".join(facts) + ".")
    lines = [
        [
            one.dataset,
            f"{one.ratio:g}",
            one.operator,
            one.precision,
            str(one.images),
            f"{one.psnr_db:.2f}",
            f"{one.ssim:.4f}",
            *("" if value is None else f"{value:.2f}" for value in (one.published_psnr_db, one.released_psnr_db)),
            "" if one.seconds is None else f"{one.seconds:.2f}",
        ]
        for one in figures
    ]
    header = [
        "dataset", "ratio", "operator", "precision", "images", "PSNR in dB", "SSIM", "published", "released",
        "seconds per image",
    ]  # fmt: skip
    return "\n\n".join([*parts, markdown_table(header, lines)])


def multiply_adds(module: ReconstructionModule, ratio: float) -> int:
    """Of a network for a pixel, without what is computed of a sampling matrix once."""
    side = 2 * module.training_options.sampling.block_size
    operator = module.default_operator(ratio, (side, side))
    y = operator(torch.zeros(1, getattr(module.config, "channels", 1), side, side))
    module.reconstruct(y, operator)
    with CountOperations() as counter:
        module.reconstruct(y, operator)
    return counter.total // 2 // side**2


def _training(config: dict[str, Any], provenance: dict[str, Any]) -> str:
    data, earlier = config["data"], _earlier_steps(provenance)
    return (
        f"Trained on {' + '.join(data['train_sets'])}, {provenance['steps']:,} steps of {data['batch_size']} crops of "
        f"{data['crop_size']}x{data['crop_size']} in {provenance.get('precision', config['trainer']['precision'])}, "
        f"{provenance['seconds'] / 60:.0f} minutes on {provenance['hardware']}"
        + (f", after {earlier:,} steps of earlier trainings" if earlier else "")
    )


def _earlier_steps(provenance: Mapping[str, Any]) -> int:
    """Steps of the trainings that `start_from` went on from, one after the other."""
    before = provenance.get("start_from")
    return before.get("steps", 0) + _earlier_steps(before) if before else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = CommandParser(prog="cs-models cards", description="Put networks into the zoo.")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="copy a training's weights, configuration and log into checkpoints/")
    adding.add_argument("run", type=Path, help="folder of the training")
    adding.add_argument("name", help="name in the zoo, such as r_coast, or ista_net_plus_10 for one ratio")
    adding.add_argument("--hardware", required=True, help="what it was trained on, in words")
    writing = commands.add_parser("write", help="write checkpoints/README.md and results.csv")
    writing.add_argument("folders", nargs="*", type=Path, help="results folders of eval.py")
    writing.add_argument("--released", type=Path, help="results folder of eval.py with the authors' weights")
    try:
        options = parser.parse_args(arguments)
        if options.command == "add":
            print(add(options.run, options.name, options.hardware))
        else:
            print(write_cards(options.folders, released=options.released))
    except UserError as error:
        return report(error)
    except OSError as error:
        return report(f"cannot write the card: {error.strerror}, {error.filename}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
