"""Time and peak memory of the training-free solvers against the length and the number of the signals.

``python benchmarks/scaling_n.py [--methods clomp,omp,iht] [--sizes 256x256,512x512] [--ratio 0.3] [--device cuda]
[--out DIR]``

A size is rows x columns: signals of that many samples x so many signals. ``--sizes 2160x3840`` is a 4K image. On the
CPU each case runs in a process of its own, whose peak resident memory is shown; on a GPU its peak allocation. With
``--out`` the lines are in ``DIR/scaling.csv`` too, and those that are there are not measured again; ``added_gb`` is
what the reconstruction adds to the peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.context import SpawnContext
from pathlib import Path

import torch
import torch.nn.functional as F
from programs import GrowingTable, peak_resident_bytes

from cs_models.operators import ColumnOperator
from cs_models.reconstruction import Reconstructor
from cs_models.solvers.clomp import CLOMP, WarmCLOMP
from cs_models.solvers.iht import IHT
from cs_models.solvers.omp import OMP
from cs_models.solvers.stomp import StOMP

WARM_UP = 8
COLUMNS = ("method", "n", "signals", "ratio", "device", "seconds", "peak_gb", "added_gb")
METHODS: dict[str, type[Reconstructor]] = {
    "clomp": CLOMP,
    "clomp_warm": WarmCLOMP,
    "omp": OMP,
    "stomp": StOMP,
    "iht": IHT,
}


def run(method: str, height: int, width: int, ratio: float, device: str) -> tuple[float, float, float]:
    """Seconds of one reconstruction, after one of a few columns, its peak memory in GB, and the peak before it."""
    operator = ColumnOperator.gaussian(ratio, (height, width)).to(device)
    coarse = torch.rand(1, 1, -(-height // 8), -(-width // 8), generator=torch.Generator().manual_seed(0))
    y = operator(F.interpolate(coarse, (height, width), mode="bilinear").to(device))
    solver = METHODS[method]()
    few = operator.resized(height, min(width, WARM_UP))  # signals of that length; libraries start and choose their ways
    solver.reconstruct(y[:, :, : few.image_size[1]], few).sum().item()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    before = _peak_bytes(device)
    start = time.perf_counter()
    solver.reconstruct(y, operator).sum().item()
    elapsed = time.perf_counter() - start
    return elapsed, _peak_bytes(device) / 1e9, before / 1e9


def _peak_bytes(device: str) -> float:
    return peak_resident_bytes() if device == "cpu" else torch.cuda.max_memory_allocated()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="clomp,omp,iht")
    parser.add_argument("--sizes", default="256x64,256x256,256x1024,512x512,1024x256")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder of a table")
    arguments = parser.parse_args()
    if arguments.out is None:
        with tempfile.TemporaryDirectory() as folder:
            measure_all(arguments, Path(folder))
    else:
        measure_all(arguments, arguments.out)


def measure_all(arguments: argparse.Namespace, out: Path) -> None:
    """Measure every case and print it."""
    table = GrowingTable(out / "scaling.csv", COLUMNS)
    context = multiprocessing.get_context("spawn")
    print("method   n     signals  seconds  peak GB")
    for size in arguments.sizes.split(","):
        height, width = (int(side) for side in size.split("x"))
        for method in arguments.methods.split(","):
            case = (method, height, width, arguments.ratio, arguments.device)
            line = table.line(case, partial(_in_own_process, context, case))
            seconds, peak = float(line["seconds"]), float(line["peak_gb"])
            print(f"{method:8s} {height:<5d} {width:<8d} {seconds:7.2f}  {peak:7.2f}", flush=True)


def _in_own_process(context: SpawnContext, case: tuple[str, int, int, float, str]) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        elapsed, peak, before = pool.submit(run, *case).result()
    return {"seconds": elapsed, "peak_gb": peak, "added_gb": peak - before}


if __name__ == "__main__":
    main()
