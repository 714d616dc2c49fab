"""The CLOMP paper's experiments on 1-D signals: grids over length, sampling ratio and sparse rate, with plots.

``python benchmarks/sparse_1d.py grid --lengths 500,1000 --ratios 0.05,0.15,0.25 --sparse_rates 0.2,0.4 --out DIR``
is the paper's Figures 1, 2, 4 and 5: ``grid_ssim.png`` and one each for PCC, PSNR and seconds.
``python benchmarks/sparse_1d.py least_ratio --sparse_rates 0.1,0.2,0.3,0.4 --out DIR`` finds the least ratio at which
the mean SSIM exceeds 0.9 (Figure 3j): ``least_ratio.csv`` and ``.png``. ``--signals NAME or FILE`` takes real signals
(ecg, air_quality, a CSV or .npy file) in place of synthetic ones. Every mean is written to ``DIR/scores.csv`` as soon
as it is known, and what is there is not computed again.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import matplotlib as mpl
import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from cs_models.errors import UserError
from cs_models.evaluation.protocol import score_signal
from cs_models.evaluation.results import to_text, write_table
from cs_models.operators import make_operator
from cs_models.zoo.methods import build_method
from datamodules.signals import load_signals, synthetic_signals, unit_range

REACHED = 0.9
SCORES = ("ssim", "pcc", "psnr_db", "seconds")


@dataclass(frozen=True)
class Source:
    """Some signals.

    Attributes:
        signals: "synthetic", or the name or file of real ones.
        count: the number of signals.
        n: samples of each; 0 for those of a file.
        sparse_rate: Kr that synthetic signals are made with; 0 for those of a file.
        data_dir: folder with the known sets.
    """

    signals: str
    count: int
    n: int = 0
    sparse_rate: float = 0.0
    data_dir: str | None = None

    def load(self) -> Tensor:
        """The signals ``(N, n)``, each scaled to [0, 1]."""
        if self.signals == "synthetic":
            return torch.from_numpy(synthetic_signals(self.count, self.n, self.sparse_rate))
        return torch.from_numpy(unit_range(load_signals(self.signals, self.data_dir).samples[: self.count])).float()


@dataclass(frozen=True)
class Means:
    """What a line of ``scores.csv`` says: mean scores of a method on some signals at one ratio, seconds for all."""

    method: str
    signals: str
    count: int
    n: int
    sparse_rate: float
    ratio: float
    seed: int
    ssim: float
    pcc: float
    psnr_db: float
    mse: float
    sparse_rate_dct: float
    sparse_rate_fft: float
    seconds: float


COLUMNS = [field.name for field in fields(Means)]


class Table:
    """``scores.csv``: what it lacks is computed and added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: list[list[str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                header, *self._lines = csv.reader(file)
            if header != COLUMNS:
                raise UserError(f"{path} is another kind of table; choose another --out")

    def means(self, method: str, source: Source, ratio: float, seed: int) -> Means:
        """The line of a case."""
        case = (method, source.signals, source.count, source.n, source.sparse_rate, ratio, seed)
        known = [to_text(value) for value in case]
        line = next((line for line in self._lines if line[: len(case)] == known), None)
        if line is None:
            scores = _scores(method, _load(source), ratio, seed)
            line = known + [to_text(scores[name]) for name in COLUMNS[len(case) :]]
            self._lines.append(line)
            write_table(self._path, COLUMNS, self._lines)
            text = ", ".join(f"{name} {scores[name]:.3f}" for name in SCORES)
            where = f"n {source.n}, Kr {source.sparse_rate:g}" if source.n else source.signals
            print(f"{where}, Sr {ratio:.2f}, {method}: {text}", flush=True)
        return Means(*case, *map(float, line[len(case) :]))


@cache
def _load(source: Source) -> Tensor:
    return source.load()


def _scores(method: str, signals: Tensor, ratio: float, seed: int) -> dict[str, float]:
    x = rearrange(signals, "s n -> s 1 n 1")
    operator = make_operator("column", ratio, (x.shape[2], 1), seed=seed)
    y = operator(x)
    solver = build_method(method, ratio)
    solver.reconstruct(y[:1], operator)  # the first call of all imports what the solver needs
    start = time.perf_counter()
    estimates = solver.reconstruct(y, operator).clamp(0, 1)
    elapsed = time.perf_counter() - start
    scores = [score_signal(estimate, signal) for estimate, signal in zip(estimates, x, strict=True)]
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]} | {"seconds": elapsed}


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
    for score in SCORES:
        figure = Figure(figsize=(max(5.5, 3.5 * len(rates) + 1), max(3.5, 2.8 * len(lengths))), layout="constrained")
        panels = figure.subplots(len(lengths), len(rates), squeeze=False, sharex=True, sharey=True)
        for (n, rate), axes in zip(((n, rate) for n in lengths for rate in rates), panels.flat, strict=True):
            here = [one for one in means if (one.n, one.sparse_rate) == (n, rate)]
            for method in arguments.methods:
                line = [(one.ratio, getattr(one, score)) for one in here if one.method == method]
                axes.plot(*zip(*line, strict=True), "o-", label=method)
            axes.set_title(f"n = {n}, Kr = {rate:g}" if n else f"{here[0].signals}, Kr = {here[0].sparse_rate_dct:.2f}")
            axes.set(xlabel="Sr", ylabel=score, yscale="log" if score == "seconds" else "linear")
            axes.label_outer()
            axes.grid(alpha=0.3)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
        files.append(arguments.out / f"grid_{score}.png")
        figure.savefig(files[-1], dpi=120)
    return files


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
    if arguments.signals:
        yield Source(arguments.signals, arguments.count, data_dir=arguments.data_dir)
        return
    for n in arguments.lengths:
        for rate in arguments.sparse_rates:
            yield Source("synthetic", arguments.count, n, rate)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=["grid", "least_ratio"])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["clomp", "stomp", "iht"])
    parser.add_argument("--lengths", type=lambda text: [int(word) for word in text.split(",")], default=[1000])
    parser.add_argument("--ratios", type=_numbers, default=[0.05, 0.15, 0.25])
    parser.add_argument("--sparse_rates", type=_numbers, default=[0.2, 0.4])
    parser.add_argument("--signals", help="name or file; default: synthetic signals")
    parser.add_argument("--data_dir")
    parser.add_argument("--count", type=int, default=200, help="number of signals")
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
