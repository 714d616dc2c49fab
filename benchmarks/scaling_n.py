"""Time and peak memory of the training-free solvers against the length and the number of the signals.

``python benchmarks/scaling_n.py [--methods clomp,omp,iht] [--sizes 256x256,512x512] [--ratio 0.3] [--device cuda]``

A size is rows x columns: signals of that many samples x so many signals. ``--sizes 2160x3840`` is a 4K image. On the
CPU each case runs in a process of its own, whose peak resident memory is shown; on a GPU its peak allocation.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import torch
import torch.nn.functional as F
from programs import peak_resident_bytes

from cs_models.operators import ColumnOperator
from cs_models.reconstruction import Reconstructor
from cs_models.solvers.clomp import CLOMP, WarmCLOMP
from cs_models.solvers.iht import IHT
from cs_models.solvers.omp import OMP
from cs_models.solvers.stomp import StOMP

WARM_UP = 8
METHODS: dict[str, type[Reconstructor]] = {
    "clomp": CLOMP,
    "clomp_warm": WarmCLOMP,
    "omp": OMP,
    "stomp": StOMP,
    "iht": IHT,
}


def run(method: str, height: int, width: int, ratio: float, device: str) -> tuple[float, float]:
    """Seconds of one reconstruction, after one of a few columns, and its peak memory in GB."""
    operator = ColumnOperator.gaussian(ratio, (height, width)).to(device)
    coarse = torch.rand(1, 1, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    y = operator(F.interpolate(coarse, (height, width), mode="bilinear").to(device))
    solver = METHODS[method]()
    few = operator.resized(height, min(width, WARM_UP))  # signals of that length; libraries start and choose their ways
    solver.reconstruct(y[:, :, : few.image_size[1]], few).sum().item()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    solver.reconstruct(y, operator).sum().item()
    elapsed = time.perf_counter() - start
    if device == "cpu":
        return elapsed, peak_resident_bytes() / 1e9
    return elapsed, torch.cuda.max_memory_allocated() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="clomp,omp,iht")
    parser.add_argument("--sizes", default="256x64,256x256,256x1024,512x512,1024x256")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("method   n     signals  seconds  peak GB")
    for size in arguments.sizes.split(","):
        height, width = (int(side) for side in size.split("x"))
        for method in arguments.methods.split(","):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                elapsed, peak = pool.submit(run, method, height, width, arguments.ratio, arguments.device).result()
            print(f"{method:8s} {height:<5d} {width:<8d} {elapsed:7.2f}  {peak:7.2f}", flush=True)


if __name__ == "__main__":
    main()
