"""What random schedules save: a training step with drawn counts against one with full counts, in one run.

``python benchmarks/recursion.py``. "Recursions Are All You Need" reports 21 % (RISTA-Net+) and 42 % (R-COAST) of the
training time saved.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cs_models.evaluation.results import write_table
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANetConfig, ISTANetModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.recursion import UnfoldingNetwork, draw_schedule
from cs_models.operators import Sampling, SamplingBank
from cs_models.training.module import ReconstructionModule


def networks() -> dict[str, Callable[[], ReconstructionModule]]:
    """The paper's two recursive networks."""
    return {
        "RISTA-Net+ 3x3": lambda: ISTANetModule(
            ISTANetConfig(layers=3, iterations_per_layer=(3, 3, 3), modulation="rfmu"),
            UnfoldingTraining(Sampling(ratios=(0.1,))),
        ),
        "R-COAST 5x4": lambda: COASTModule(
            COASTConfig(layers=5, iterations_per_layer=(4,) * 5, modulation="rfmu"),
            UnfoldingTraining(Sampling(ratios=(0.1,))),
        ),
    }


def seconds_of_step(
    network: UnfoldingNetwork, x: torch.Tensor, bank: SamplingBank, schedule: tuple[int, ...], precision: torch.dtype
) -> float:
    """Time of a forward and backward pass."""
    operator = bank.draw(0, (x.shape[-2], x.shape[-1]), x.device)
    y = operator(x)
    _synchronize(x.device)
    start = time.perf_counter()
    with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
        run = network.unfold(y, operator, schedule)
        loss = (run.iterates[-1].float() - x).square().mean() + 0.01 * sum(run.penalties)
    loss.backward()
    _synchronize(x.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--out", type=Path, help="folder for recursion.csv")
    options = parser.parse_args()
    lines: list[list[str]] = []
    precision = torch.bfloat16 if options.precision == "bf16" else torch.float32
    print(f"{'network':16} {'full':>9} {'random':>9} {'random/full':>12} {'iterations':>11}")
    for name, build in networks().items():
        module = build().to(options.device)
        network = module.network.train()
        assert isinstance(network, UnfoldingNetwork)
        x = torch.rand(options.batch_size, 1, 33, 33, device=options.device)
        full = network.iterations_per_layer
        fixed, drawn, counts = [], [], []
        seconds_of_step(network, x, module.bank, full, precision)
        # The two in turn, so that a drifting machine does not favour either.
        for step in range(options.steps):
            schedule = draw_schedule(full, seed=0, step=step)
            counts.append(sum(schedule))
            fixed.append(seconds_of_step(network, x, module.bank, full, precision))
            drawn.append(seconds_of_step(network, x, module.bank, schedule, precision))
        ratio = statistics.mean(drawn) / statistics.mean(fixed)
        print(
            f"{name:16} {statistics.mean(fixed):8.3f}s {statistics.mean(drawn):8.3f}s {ratio:12.2f} "
            f"{statistics.mean(counts):5.1f} of {sum(full)}"
        )
        for kind, seconds, iterations in (("full", fixed, sum(full)), ("random", drawn, statistics.mean(counts))):
            lines.append([name, kind, f"{statistics.mean(seconds):.4g}", f"{iterations:g}"])
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / "recursion.csv", ["network", "counts", "seconds", "iterations"], lines)


if __name__ == "__main__":
    main()
