"""From single results to one line for each method, set and ratio, with the published figure beside it."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cs_models.evaluation.pictures import PATH_SEPARATORS
from cs_models.evaluation.results import Row, to_text, write_table
from cs_models.zoo.methods import CHECKPOINT_SUFFIXES, METHODS, split_settings

PUBLISHED = Path(__file__).with_name("published.csv")

# What the papers call our methods; the CLOMP paper's OMP is a stagewise one.
PUBLISHED_METHODS = {
    "clomp": "CLOMP",
    "coast": "COAST",
    "csnet_plus": "CSNet+",
    "ddnm": "DDNM",
    "idm": "IDM",
    "iht": "IHT",
    "ista_net_plus": "ISTA-Net+",
    "ista_net_pp": "ISTA-Net++",
    "omp": "OMP",
    "opine_net_plus": "OPINE-Net+",
    "r_coast": "R-COAST",
    "rista_net_plus": "RISTA-Net+",
    "rk_ccsnet": "RK-CCSNet",
    "stomp": "OMP",
}
# The ISTA-Net++ and the recursion paper call the same 68 crops BSD68. The CLOMP paper's sets are its own: they carry
# their size in the name and match none of ours.
PUBLISHED_DATASETS = {"CBSD68": ("BSD68", "CBSD68")}


class Setting(NamedTuple):
    """What rows have in common that are averaged."""

    method: str
    dataset: str
    ratio: float
    operator: str
    channels: str
    noise: float
    bits: int | None
    precision: str
    schedule: str


@dataclass(frozen=True)
class Published:
    """A figure from a paper."""

    psnr_db: float
    ssim: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One method at one ratio on one set.

    Attributes:
        images: number of images.
        seeds: number of draws of the operator.
        exact: how many images are reconstructed without any error, as constant signals may be. Their PSNR is infinite,
            so the means of the PSNR leave them out, unless all are exact.
        psnr_db: mean over images; of several draws each image's mean counts once.
        psnr_std: standard deviation over images (of a sample; 0 for one image).
        ssim: as `psnr_db`.
        ssim_std: as `psnr_std`.
        psnr_seed_std: standard deviation, over the draws, of the mean PSNR; None for one draw.
        ssim_seed_std: the same of the mean SSIM.
        seconds: mean time of an image.
        images_per_second: its inverse.
        iterations: mean number of iterations, or evaluations of a network, where it is known.
        parameters: trainable parameters; 0 for a solver.
        macs: mean multiply-adds of a network for an image.
        peak_memory_mb: largest memory on a GPU, in MiB.
        published_psnr_db: of the first source.
        published_ssim: of the first source that gives one.
        difference_db: ours minus published.
        source: every source with its figure.
        pcc: mean correlation of signals.
        mse: mean squared error of signals.
        sparse_rate_dct: mean sparse rate by the DCT.
        sparse_rate_fft: mean sparse rate by the FFT.
        measured_ratio: mean of the measurements per pixel that were really taken.
        provenance: where the method comes from, see `Row`.
        device: everything that it ran on.
    """

    method: str
    dataset: str
    ratio: float
    operator: str
    channels: str
    noise: float
    bits: int | None
    precision: str
    schedule: str
    images: int
    exact: int
    seeds: int
    psnr_db: float
    psnr_std: float
    ssim: float
    ssim_std: float
    psnr_seed_std: float | None
    ssim_seed_std: float | None
    seconds: float
    images_per_second: float
    iterations: float | None
    parameters: int
    macs: float | None
    peak_memory_mb: float | None
    published_psnr_db: float | None
    published_ssim: float | None
    difference_db: float | None
    source: str
    pcc: float | None
    mse: float | None
    sparse_rate_dct: float | None
    sparse_rate_fft: float | None
    measured_ratio: float | None
    provenance: str
    device: str


def variant(item: Row | Summary) -> str:
    """A method's name, with precision and schedule where they are not the usual ones."""
    words = [item.method]
    if item.precision != "fp32":
        words.append(item.precision)
    if item.schedule:
        words.append(f"({item.schedule})")
    return " ".join(words)


def label(item: Row | Summary) -> str:
    """A method's name in figures: its variant, with the operator where it is not 33x33 blocks."""
    return variant(item) if item.operator == "block:33" else f"{variant(item)} [{item.operator}]"


def named(summaries: Mapping[Setting, Summary]) -> list[tuple[str, list[Setting]]]:
    """The lines of one operator's table, each a method at several ratios: what it is called, and its settings.

    Checkpoints for one ratio each, ``net_10.safetensors`` and ``net_30.safetensors``, are one line if they agree in
    everything else; those that share a ratio are told apart by their paths.
    """
    alike: dict[tuple[str, ...], list[Setting]] = defaultdict(list)
    for setting, summary in summaries.items():
        alike[_short(setting.method), summary.provenance, setting.precision, setting.schedule].append(setting)
    lines = []
    for (name, *_), settings in alike.items():
        if len({setting.ratio for setting in settings}) == len(settings):
            lines.append((name, settings))
            continue
        methods = dict.fromkeys(setting.method for setting in settings)
        lines += [(method, [setting for setting in settings if setting.method == method]) for method in methods]
    return lines


def _short(method: str) -> str:
    """A checkpoint's file name without its ratio; any other method as it is."""
    return re.sub(r"_\d+$", "", Path(method).stem) if method.endswith(CHECKPOINT_SUFFIXES) else method


def setting_of(row: Row) -> Setting:
    """The setting of a row."""
    return Setting(*(getattr(row, name) for name in Setting._fields))


def current_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows that count: after a change of a method, its set or its operator only the newest ones.

    Sets of one name that are not the same get names of their own, by the paths that they came from.

    Args:
        rows: oldest first.
    """
    newest: dict[Setting, str] = {}
    latest: dict[tuple[Setting, str, int], Row] = {}
    for row in with_sets_told_apart(list(rows)):
        setting = setting_of(row)
        newest[setting] = row.settings_key
        latest[setting, row.image, row.seed] = row
    return [row for (setting, _, _), row in latest.items() if row.settings_key == newest[setting]]


def with_sets_told_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, with as much of the origin added to a dataset's name as sets of that name differ in."""
    origins: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        origins[row.dataset].add(row.origin)
    names = {(name, origin): _set_name(name, origin, group) for name, group in origins.items() for origin in group}
    return [replace(row, dataset=names[row.dataset, row.origin]) for row in rows]


def _set_name(name: str, origin: str, origins: Collection[str]) -> str:
    """A set's name, and in brackets the shortest ending of its path that no other has; a known set's name stays."""
    if len(origins) == 1 or not origin:
        return name
    paths = [re.split(PATH_SEPARATORS, other) for other in origins]
    own = re.split(PATH_SEPARATORS, origin)
    endings = (own[-count:] for count in range(1, len(own) + 1))
    telling = (ending for ending in endings if sum(path[-len(ending) :] == ending for path in paths) == 1)
    return f"{name} ({'/'.join(next(telling, own))})"


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """A line for each setting, in the order in which settings first appear; see `current_rows`."""
    return [summary_of(setting, group) for setting, group in by_setting(rows).items()]


def by_setting(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    """The rows that count, see `current_rows`, by setting, in the order in which settings first appear."""
    groups: dict[Setting, list[Row]] = defaultdict(list)
    for row in current_rows(rows):
        groups[setting_of(row)].append(row)
    return dict(groups)


def summary_of(setting: Setting, rows: Sequence[Row]) -> Summary:
    """The line of one setting's rows."""
    counted = with_finite_psnr(rows)
    psnr_images, ssim_images = means_by(counted, "image", "psnr_db"), means_by(rows, "image", "ssim")
    psnr_seeds, ssim_seeds = means_by(counted, "seed", "psnr_db"), means_by(rows, "seed", "ssim")
    seconds = float(np.mean([row.seconds for row in rows]))
    psnr_db = float(np.mean(list(psnr_images.values())))
    published = published_figures(setting)
    memory = [row.peak_memory_mb for row in rows if row.peak_memory_mb is not None]
    several = len(ssim_seeds) > 1
    return Summary(
        **setting._asdict(),
        images=len(ssim_images),
        exact=len({row.image for row in rows if math.isinf(row.psnr_db)}),
        seeds=len(ssim_seeds),
        psnr_db=psnr_db,
        psnr_std=_spread(psnr_images.values()),
        ssim=float(np.mean(list(ssim_images.values()))),
        ssim_std=_spread(ssim_images.values()),
        psnr_seed_std=_spread(psnr_seeds.values()) if several else None,
        ssim_seed_std=_spread(ssim_seeds.values()) if several else None,
        seconds=seconds,
        images_per_second=1 / seconds if seconds > 0 else float("inf"),
        iterations=_mean(row.iterations for row in rows),
        parameters=rows[-1].parameters,
        macs=_mean(row.macs for row in rows),
        peak_memory_mb=max(memory, default=None),
        published_psnr_db=published[0].psnr_db if published else None,
        published_ssim=next((figure.ssim for figure in published if figure.ssim is not None), None),
        difference_db=psnr_db - published[0].psnr_db if published else None,
        source="; ".join(f"{figure.source}: {figure.psnr_db:g} dB" for figure in published),
        pcc=_mean(row.pcc for row in rows),
        mse=_mean(row.mse for row in rows),
        sparse_rate_dct=_mean(row.sparse_rate_dct for row in rows),
        sparse_rate_fft=_mean(row.sparse_rate_fft for row in rows),
        measured_ratio=_mean(row.measured_ratio for row in rows),
        provenance=rows[-1].provenance,
        device=", ".join(sorted({row.device for row in rows})),
    )


def with_finite_psnr(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows whose PSNR counts: all but exact reconstructions, unless all are exact."""
    return [row for row in rows if math.isfinite(row.psnr_db)] or rows


def means_by(rows: Iterable[Row], key: str, value: str) -> dict[str, float]:
    """Mean of a column for each value of another one."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, key)].append(getattr(row, value))
    return {name: float(np.mean(values)) for name, values in groups.items()}


def published_figures(setting: Setting) -> list[Published]:
    """What papers report for this method, set, ratio and kind of channels, in the order of `published.csv`."""
    name = published_method(setting.method)
    if name is None or setting.noise > 0 or setting.bits is not None:
        return []
    return [
        figure
        for method, ratio, figure in printed_figures(setting.dataset, setting.channels)
        if method == name and abs(ratio - setting.ratio) < 1e-6
    ]


def published_method(method: str) -> str | None:
    """What papers call a method: by its name, or by the start of a checkpoint's file name."""
    stem = Path(split_settings(method)[0]).stem
    if stem in METHODS:
        return PUBLISHED_METHODS.get(stem)
    names = [name for name in PUBLISHED_METHODS if stem == name or stem.startswith((f"{name}_", f"{name}-"))]
    return PUBLISHED_METHODS[max(names, key=len)] if names else None


def printed_figures(dataset: str, channels: str) -> list[tuple[str, float, Published]]:
    """Everything that papers report on a set: their name of the method, the ratio and the figure."""
    return [
        (method, ratio, figure)
        for name in PUBLISHED_DATASETS.get(dataset, (dataset,))
        for method, ratio, kind, figure in _published_table().get(name, ())
        if kind == channels
    ]


@cache
def _published_table() -> dict[str, list[tuple[str, float, str, Published]]]:
    """Method, ratio, channels and figure, by dataset."""
    table: dict[str, list[tuple[str, float, str, Published]]] = defaultdict(list)
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            channels = "rgb" if "RGB" in line["note"] else "luminance"
            # Of the recursion paper's two trainings both are listed, so the note tells them apart.
            source = f"{line['source']} ({line['note']})" if "% data" in line["note"] else line["source"]
            figure = Published(float(line["psnr_db"]), float(line["ssim"]) if line["ssim"] else None, source)
            table[line["dataset"]].append((line["method"], float(line["ratio"]), channels, figure))
    return dict(table)


def write_summary(summaries: Sequence[Summary], path: Path) -> None:
    """Write the lines as CSV.

    Raises:
        UserError: if the file cannot be written.
    """
    columns = [field.name for field in fields(Summary)]
    write_table(path, columns, [[to_text(value) for value in asdict(summary).values()] for summary in summaries])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _spread(values: Iterable[float]) -> float:
    numbers = np.array(list(values))
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        return 0.0 if len(numbers) < 2 else float("nan")
    return float(np.std(numbers, ddof=1))
