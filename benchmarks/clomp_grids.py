"""The CLOMP paper's experiments on signals and images: grids over length, sampling ratio and sparse rate, with plots.

``python benchmarks/clomp_grids.py grid --lengths 500,1000 --ratios 0.05,0.15,0.25 --sparse_rates 0.2,0.4 --out DIR``
writes ``grid_ssim.png`` and one each for PCC, PSNR and seconds. ``... least_ratio --sparse_rates 0.1,0.2 --out DIR``
finds the least ratio at which the mean SSIM exceeds 0.9 (Figure 3j): ``least_ratio.csv`` and ``.png``. ``--signals``
takes other signals than synthetic ones: ecg, air_quality, a CSV or .npy file, or a set or folder of images, of which
the largest squares in the middle are scaled to n x n and measured column by column. Every mean is written to
``DIR/scores.csv`` as soon as it is known, and what is there is not computed again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from einops import rearrange
from matplotlib.figure import Figure
from programs import GrowingTable
from torch import Tensor
from torch.nn.functional import interpolate

from cs_models.errors import UserError
from cs_models.evaluation import protocol
from cs_models.evaluation.results import to_text, write_table
from cs_models.operators import make_operator
from cs_models.zoo.methods import build_method
from datamodules.catalog import load_set
from datamodules.signals import load_signals, names_signals, synthetic_signals, unit_range

REACHED = 0.9
SCORES = ("ssim", "pcc", "psnr_db", "seconds")


@dataclass(frozen=True)
class Source:
    """Some signals, or images.

    Attributes:
        signals: "synthetic", or the name, file or folder of real ones.
        count: the number of signals or images.
        n: samples of each; 0 for those of a file, and for images as they are.
        sparse_rate: Kr that synthetic signals are made with; 0 for others.
        data_dir: folder with the known sets.
    """

    signals: str
    count: int
    n: int = 0
    sparse_rate: float = 0.0
    data_dir: str | None = None

    def load(self) -> Tensor:
        """Signals ``(N, 1, n, 1)``, each scaled to [0, 1], or images ``(N, 1, n, n)``."""
        if self.signals == "synthetic":
            return _as_columns(torch.from_numpy(synthetic_signals(self.count, self.n, self.sparse_rate)))
        if names_signals(self.signals):
            samples = load_signals(self.signals, self.data_dir).samples[: self.count]
            return _as_columns(torch.from_numpy(unit_range(samples)).float())
        images = load_set(self.signals, self.data_dir, limit=self.count)
        return torch.cat([_square(image, self.n) for _, image in images])


def _as_columns(signals: Tensor) -> Tensor:
    return rearrange(signals, "s n -> s 1 n 1")


def _square(image: Tensor, side: int) -> Tensor:
    """The middle of an image ``(1, H, W)``, scaled to ``(1, 1, side, side)``."""
    height, width = image.shape[1:]
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    square = image[None, :, top : top + size, left : left + size]
    return interpolate(square, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class Means:
    """What a line of ``scores.csv`` says: mean scores of a method on some signals at one ratio, seconds for all.

    Images have no PCC and no MSE.
    """

    method: str
    signals: str
    count: int
    n: int
    sparse_rate: float
    ratio: float
    seed: int
    ssim: float
    pcc: float | None
    psnr_db: float
    mse: float | None
    sparse_rate_dct: float
    sparse_rate_fft: float
    seconds: float


COLUMNS = [field.name for field in fields(Means)]


class Table:
    """``scores.csv``: what it lacks is computed and added."""

    def __init__(self, path: Path) -> None:
        self._table = GrowingTable(path, COLUMNS)

    def means(self, method: str, source: Source, ratio: float, seed: int) -> Means:
        """The line of a case."""
        case = (method, source.signals, source.count, source.n, source.sparse_rate, ratio, seed)

        def measure() -> dict[str, float | None]:
            scores = _scores(method, _load(source), ratio, seed)
            text = ", ".join(f"{name} {scores[name]:.3f}" for name in SCORES if name in scores)
            kind = f", Kr {source.sparse_rate:g}" if source.sparse_rate else f", {source.signals}"
            print(f"n {source.n}{kind}, Sr {ratio:.2f}, {method}: {text}", flush=True)
            return {name: scores.get(name) for name in COLUMNS}

        line = self._table.line(case, measure)
        measured: list[Any] = [float(line[name]) if line[name] else None for name in COLUMNS[len(case) :]]
        return Means(*case, *measured)


@cache
def _load(source: Source) -> Tensor:
    return source.load()


def _scores(method: str, x: Tensor, ratio: float, seed: int) -> dict[str, float]:
    operator = make_operator("column", ratio, (x.shape[2], x.shape[3]), seed=seed)
    y = operator(x)
    solver = build_method(method, ratio)
    solver.reconstruct(y[:1], operator)  # the first call of all imports what the solver needs
    start = time.perf_counter()
    estimates = solver.reconstruct(y, operator).clamp(0, 1)
    elapsed = time.perf_counter() - start
    scores = [_score(estimate, signal) for estimate, signal in zip(estimates, x, strict=True)]
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]} | {"seconds": elapsed}


def _score(estimate: Tensor, x: Tensor) -> dict[str, float]:
    if x.shape[2] == 1:
        return protocol.score_signal(estimate, x) | protocol.sparse_rates(x)
    return dict(zip(("psnr_db", "ssim"), protocol.score(estimate, x), strict=True)) | protocol.sparse_rates(x)


def grid(arguments: argparse.Namespace, table: Table) -> list[Path]:
    """Every method at every ratio on every source; a figure for each score, a panel for each source."""
    means = [
        table.means(method, source, ratio, arguments.seed)
        for source in sources(arguments)
        for ratio in arguments.ratios
        for method in arguments.methods
    ]
    lengths = list(dict.fromkeys(one.n for one in means))
    rates = list(dict.fromkeys(one.sparse_rate for one in means))
    files = []
    for score in (name for name in SCORES if getattr(means[0], name) is not None):
        figure = Figure(figsize=(max(5.5, 3.5 * len(rates) + 1), max(3.5, 2.8 * len(lengths))), layout="constrained")
        panels = figure.subplots(len(lengths), len(rates), squeeze=False, sharex=True, sharey=True)
        for (n, rate), axes in zip(((n, rate) for n in lengths for rate in rates), panels.flat, strict=True):
            here = [one for one in means if (one.n, one.sparse_rate) == (n, rate)]
            for method in arguments.methods:
                line = [(one.ratio, getattr(one, score)) for one in here if one.method == method]
                axes.plot(*zip(*line, strict=True), "o-", label=method)
            axes.set_title(_title(here[0]))
            axes.set(xlabel="Sr", ylabel=score, yscale="log" if score == "seconds" else "linear")
            axes.label_outer()
            axes.grid(alpha=0.3)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
        files.append(arguments.out / f"grid_{score}.png")
        figure.savefig(files[-1], dpi=120)
    return files


def _title(one: Means) -> str:
    names = [f"n = {one.n}"] if one.n else []
    if one.sparse_rate:
        return ", ".join([*names, f"Kr = {one.sparse_rate:g}"])
    return ", ".join([*names, one.signals, f"Kr = {one.sparse_rate_dct:.2f}"])


def least_ratio(arguments: argparse.Namespace, table: Table) -> list[Path]:
    """The least ratio with a mean SSIM above 0.9 by bisection in steps of 0.01, since the SSIM grows with the ratio."""

    def reached(method: str, source: Source, percent: int) -> bool:
        return table.means(method, source, percent / 100, arguments.seed).ssim > REACHED

    found: list[tuple[str, Source, float, float | None]] = []
    for source in sources(arguments):
        measured = table.means(arguments.methods[0], source, 0.5, arguments.seed).sparse_rate_dct
        for method in arguments.methods:
            low, high = 0, 100
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if reached(method, source, middle) else (middle, high)
            least = high / 100 if high < 100 or reached(method, source, 100) else None
            found.append((method, source, source.sparse_rate or measured, least))
    path = arguments.out / "least_ratio"
    columns = ["method", "signals", "n", "sparse_rate", "least_ratio"]
    lines = [[method, one.signals, to_text(one.n), to_text(rate), to_text(least)] for method, one, rate, least in found]
    write_table(path.with_suffix(".csv"), columns, lines)

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for method in arguments.methods:
        for n in dict.fromkeys(source.n for _, source, _, _ in found):
            line = [(rate, least) for name, one, rate, least in found if (name, one.n) == (method, n) and least]
            label = f"{method}, n = {n}" if n else method
            axes.plot([rate for rate, _ in line], [least for _, least in line], "o-", label=label)
    axes.set(xlabel="Kr", ylabel=f"least Sr with SSIM > {REACHED}", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path.with_suffix(".png"), dpi=120)
    return [path.with_suffix(".csv"), path.with_suffix(".png")]


def sources(arguments: argparse.Namespace) -> Iterator[Source]:
    """The signals that were asked for."""
    name, count, data_dir = arguments.signals, arguments.count, arguments.data_dir
    if name == "synthetic":
        for n in arguments.lengths or [1000]:
            for rate in arguments.sparse_rates:
                yield Source(name, count, n, rate)
    elif names_signals(name):
        yield Source(name, count, data_dir=data_dir)
    else:
        for n in arguments.lengths or [256]:
            yield Source(name, count, n, data_dir=data_dir)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=["grid", "least_ratio"])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["clomp", "stomp", "iht"])
    parser.add_argument(
        "--lengths",
        type=lambda text: [int(word) for word in text.split(",")],
        help="samples of synthetic signals (1000), or sides that images are scaled to (256)",
    )
    parser.add_argument("--ratios", type=_numbers, default=[0.05, 0.15, 0.25])
    parser.add_argument("--sparse_rates", type=_numbers, default=[0.2, 0.4])
    parser.add_argument("--signals", default="synthetic", help="name, file or folder; default: synthetic signals")
    parser.add_argument("--data_dir")
    parser.add_argument("--count", type=int, default=200, help="number of signals or images")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling matrix")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    mpl.use("Agg")
    try:
        table = Table(arguments.out / "scores.csv")
        files = {"grid": grid, "least_ratio": least_ratio}[arguments.experiment](arguments, table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*files, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
