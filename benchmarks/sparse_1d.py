"""The CLOMP paper's experiments on 1-D signals: grids over length, sampling ratio and sparse rate, with plots.

``python benchmarks/sparse_1d.py grid --lengths 500,1000 --ratios 0.05,0.15,0.25 --sparse_rates 0.2,0.4 --out DIR``
is the paper's Figures 1, 2, 4 and 5; ``python benchmarks/sparse_1d.py least_ratio --out DIR`` finds the least ratio at
which the mean SSIM exceeds 0.9 for each sparse rate (Figure 3j). Both write a CSV and a PNG; ``--signals NAME or FILE``
takes real signals (ECG, AirQuality, a CSV or .npy file) in place of synthetic ones.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_models.methods import build_method
from cs_models.metrics import pcc, ssim_1d
from cs_models.operators import make_operator
from cs_models.sparse.transforms import dct
from datamodules.signals import load_signals, synthetic_signals

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, str | float]
REACHED = 0.9


def sparse_rate(signals: npt.NDArray[np.float32], by: str = "dct", share: float = 0.98) -> npt.NDArray[np.float64]:
    """Kr of each signal: the share of coefficients that hold 98 % of the sum of absolute coefficients.

    Args:
        signals: ``(N, n)``.
        by: "dct", as the paper says, or "fft", as its code does.
        share: of the sum.
    """
    coefficients = dct(torch.from_numpy(signals).double()).numpy() if by == "dct" else np.fft.fft(signals, axis=1)
    magnitudes = np.sort(np.abs(coefficients), axis=1)[:, ::-1]
    reached = np.cumsum(magnitudes, axis=1) >= share * magnitudes.sum(axis=1, keepdims=True)
    return (reached.argmax(axis=1) + 1) / signals.shape[1]


def scores(method: str, signals: npt.NDArray[np.float32], ratio: float, seed: int) -> Row:
    """Mean SSIM-1D, PCC, MSE and PSNR of a method on signals ``(N, n)`` in [0, 1], and its seconds."""
    x = torch.from_numpy(signals)
    operator = make_operator("column", ratio, (x.shape[1], 1), seed=seed)
    y = operator(x[:, None, :, None])
    start = time.perf_counter()
    estimate: Tensor = build_method(method, ratio).reconstruct(y, operator)[:, 0, :, 0].clamp(0, 1)
    elapsed = time.perf_counter() - start
    squared_error = (estimate - x).double().square().mean(1)
    return {
        "ssim": ssim_1d(estimate, x).mean().item(),
        "pcc": pcc(estimate, x).mean().item(),
        "mse": squared_error.mean().item(),
        "psnr_db": (-10 * squared_error.clamp_min(1e-12).log10()).mean().item(),
        "seconds": elapsed,
    }


def sources(arguments: argparse.Namespace) -> Iterable[tuple[int, float, npt.NDArray[np.float32]]]:
    """Length, sparse rate and signals ``(N, n)`` in [0, 1] of each part of the grid."""
    if arguments.signals:
        loaded = load_signals(arguments.signals, arguments.data_dir)
        samples = loaded.samples[: arguments.count]
        low, high = samples.min(1, keepdims=True), samples.max(1, keepdims=True)
        samples = (samples - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
        print(f"{len(samples)} signals, {loaded.filled.sum()} missing samples filled in")
        yield samples.shape[1], float(sparse_rate(samples).mean()), samples
        return
    for n in arguments.lengths:
        for rate in arguments.sparse_rates:
            yield n, rate, synthetic_signals(arguments.count, n, rate, arguments.seed)


def grid(arguments: argparse.Namespace) -> None:
    rows: list[Row] = []
    for n, rate, signals in sources(arguments):
        measured = {by: float(sparse_rate(signals, by).mean()) for by in ("dct", "fft")}
        for ratio in arguments.ratios:
            for method in arguments.methods:
                row: Row = {"method": method, "n": n, "sparse_rate": rate, "ratio": ratio}
                row |= {f"kr_{by}": value for by, value in measured.items()}
                row |= scores(method, signals, ratio, arguments.seed)
                rows.append(row)
                print(f"{method:12s} n {n:5d} Kr {rate:.2f} Sr {ratio:.2f}: "
                      f"SSIM {row['ssim']:.3f} PCC {row['pcc']:.3f} {row['seconds']:.2f} s", flush=True)  # fmt: skip
    write(rows, arguments.out / "grid.csv")
    plot(rows, arguments.out / "grid.png")


def least_ratio(arguments: argparse.Namespace) -> None:
    """Bisection in steps of 0.01, since the SSIM grows with the ratio."""
    rows: list[Row] = []
    for n, rate, signals in sources(arguments):
        for method in arguments.methods:
            low, high = 0, 100
            while high - low > 1:
                middle = (low + high) // 2
                reached = float(scores(method, signals, middle / 100, arguments.seed)["ssim"]) > REACHED
                low, high = (low, middle) if reached else (middle, high)
            rows.append({"method": method, "n": n, "sparse_rate": rate, "ratio": high / 100})
            print(f"{method:12s} n {n:5d} Kr {rate:.2f}: SSIM > {REACHED} from Sr {high / 100:.2f} on", flush=True)
    write(rows, arguments.out / "least_ratio.csv")
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for method in arguments.methods:
        chosen = [row for row in rows if row["method"] == method]
        axes.plot([row["sparse_rate"] for row in chosen], [row["ratio"] for row in chosen], "o-", label=method)
    axes.set(xlabel="sparse rate Kr", ylabel=f"least Sr with SSIM > {REACHED}")
    axes.legend()
    figure.savefig(arguments.out / "least_ratio.png", dpi=150)


def write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(path)


def plot(rows: Sequence[Row], path: Path) -> None:
    """SSIM and time against the ratio, a line for each method, a column for each (n, Kr)."""
    cases = sorted({(row["n"], row["sparse_rate"]) for row in rows})
    figure, axes = plt.subplots(2, len(cases), figsize=(4 * len(cases), 6), squeeze=False, layout="constrained")
    for column, case in enumerate(cases):
        here = [row for row in rows if (row["n"], row["sparse_rate"]) == case]
        for method in dict.fromkeys(row["method"] for row in here):
            chosen = [row for row in here if row["method"] == method]
            ratios = [row["ratio"] for row in chosen]
            axes[0, column].plot(ratios, [row["ssim"] for row in chosen], "o-", label=method)
            axes[1, column].semilogy(ratios, [row["seconds"] for row in chosen], "o-", label=method)
        axes[0, column].set(title=f"n = {case[0]}, Kr = {case[1]:.2f}", ylabel="SSIM", ylim=(0, 1))
        axes[1, column].set(xlabel="Sr", ylabel="seconds")
    axes[0, 0].legend()
    figure.savefig(path, dpi=150)
    print(path)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=["grid", "least_ratio"])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["clomp", "stomp", "iht"])
    parser.add_argument("--lengths", type=lambda text: [int(word) for word in text.split(",")], default=[1000])
    parser.add_argument("--ratios", type=_numbers, default=[0.05, 0.15, 0.25])
    parser.add_argument("--sparse_rates", type=_numbers, default=[0.2, 0.4])
    parser.add_argument("--signals", help="name or file; default: synthetic signals")
    parser.add_argument("--data_dir")
    parser.add_argument("--count", type=int, default=200, help="number of signals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    {"grid": grid, "least_ratio": least_ratio}[arguments.experiment](arguments)


if __name__ == "__main__":
    main()
