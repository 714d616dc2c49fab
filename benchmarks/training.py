"""What a training step costs: bfloat16, channels_last and torch.compile against eager float32 in NCHW order.

``python benchmarks/training.py r_coast ista_net_pp`` at batch 64 of 33x33. A step is everything: crops, measurement,
loss, gradients, Adam. "recorded" is `training.cuda_graphs`, on GPUs and for networks that take any operator. "outside"
is the share of the step before the network starts and after its gradients are there; "share of peak" compares the
convolutions with plain ones with gradients in the same precision; "hours" is what the published training would take.
All alternatives run in turns in one process.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import convolutions, median_seconds, synchronize
from torch.utils.flop_counter import FlopCounterMode

from cs_models.cli.allocator import keep_freed_memory
from cs_models.networks.learned_sampling.opine_net import OPINENetConfig, OPINENetModule
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANetConfig, ISTANetModule
from cs_models.networks.unfolding.ista_net_pp import ISTANetPPModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.scnet import SCNetModule
from cs_models.networks.unfolding.sodas_net import SODASNetConfig, SODASNetModule
from cs_models.operators import Sampling
from cs_models.operators.base import MatrixOperator
from cs_models.training.module import ReconstructionModule
from cs_models.training.step_graphs import StepGraphs
from datamodules.patches import PatchDataModule

COLUMNS = ("network", "alternative", "milliseconds", "times faster", "patches/s", "outside", "share of peak", "hours")
BASELINE = "fp32 NCHW"
ONE_RATIO = UnfoldingTraining(Sampling(ratios=(0.1,)))
# Of each network how it is built, and the steps of its published training.
NETWORKS: dict[str, tuple[Callable[[], ReconstructionModule], int]] = {
    "ista_net_plus": (lambda: ISTANetModule(ISTANetConfig(), ONE_RATIO), 200 * 1390),
    "rista_net_plus": (
        lambda: ISTANetModule(ISTANetConfig(layers=3, iterations_per_layer=(3,) * 3, modulation="rfmu"), ONE_RATIO),
        200 * 1390,
    ),
    "sodas_net": (lambda: SODASNetModule(SODASNetConfig(), ONE_RATIO), 200 * 1390),
    "opine_net_plus": (lambda: OPINENetModule(OPINENetConfig(), ONE_RATIO), 170 * 1390),
    "ista_net_pp": (lambda: ISTANetPPModule(), 400 * 1250),
    "scnet": (lambda: SCNetModule(), 600 * 1390),
    "coast": (lambda: COASTModule(), 400 * 1390),
    "r_coast": (
        lambda: COASTModule(COASTConfig(layers=5, iterations_per_layer=(4,) * 5, modulation="rfmu")),
        400 * 1390,
    ),
}


class Step:
    """A training step of a network in one of the ways to run it, with a clock on what lies outside the network."""

    def __init__(
        self,
        name: str,
        device: torch.device,
        precision: torch.dtype,
        memory_format: torch.memory_format,
        compiled: bool,
        recorded: bool,
        batch_size: int,
    ) -> None:
        torch.manual_seed(0)
        self.module = NETWORKS[name][0]().to(device)
        self.module.network.to(memory_format=memory_format).train()
        if compiled:
            self.module.compile_layers()
        self.device, self.precision = device, precision
        self.optimizer = torch.optim.AdamW(self.module.network.parameters(), 1e-4, fused=True)
        data = PatchDataModule(crop_size=33, batch_size=batch_size, batches_per_epoch=1_000_000)
        data.setup("fit")
        self.batches = iter(data.train_dataloader())
        self.outside: list[float] = []
        self.graphs: StepGraphs | None = None
        if recorded:
            with self._autocast():
                self.graphs = StepGraphs(self.module, data.training_patches(batch_size).to(device).float() / 255)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def __call__(self) -> None:
        start = time.perf_counter()
        x = next(self.batches).to(self.device, non_blocking=True).float() / 255
        operator = self.module.training_operator((x.shape[-2], x.shape[-1]), 0, self.device)
        y = operator.measure(x)
        synchronize(self.device)
        before = time.perf_counter()
        if self.graphs is not None:
            assert isinstance(operator, MatrixOperator)
            loss = self.graphs.loss(x, y, operator)
        else:
            with self._autocast():
                loss = self.module.training_loss(x, y, operator)
        loss.backward()
        synchronize(self.device)
        after = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(self.device)
        end = time.perf_counter()
        self.outside.append((before - start + end - after) / (end - start))


def lines_of(name: str, options: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Every alternative of one network."""

    def way(
        precision: torch.dtype, memory_format: torch.memory_format, compiled: bool = False, recorded: bool = False
    ) -> Step:
        return Step(name, device, precision, memory_format, compiled, recorded, options.batch_size)

    ways = {
        BASELINE: way(torch.float32, torch.contiguous_format),
        "fp32": way(torch.float32, torch.channels_last),
        "bf16": way(torch.bfloat16, torch.channels_last),
    }
    if options.compile:
        ways["bf16 compiled"] = way(torch.bfloat16, torch.channels_last, compiled=True)
    if device.type == "cuda" and ways["bf16"].module.any_operator:
        ways["bf16 recorded"] = way(torch.bfloat16, torch.channels_last, recorded=True)
        if options.compile:
            ways["bf16 both"] = way(torch.bfloat16, torch.channels_last, compiled=True, recorded=True)
    pixels = options.batch_size * 33 * 33
    peaks = {
        "fp32": convolutions(device, torch.float32, pixels, backward=True),
        "bf16": convolutions(device, torch.bfloat16, pixels, backward=True),
    }
    calls: dict[str, Callable[[], object]] = {**ways, **{f"peak {key}": call for key, (call, _) in peaks.items()}}
    seconds = median_seconds(calls, options.repeats, device)
    with FlopCounterMode(display=False) as counter:
        ways["fp32"]()
    counts = counter.get_flop_counts()["Global"]
    convolved = counts[torch.ops.aten.convolution] + counts[torch.ops.aten.convolution_backward]
    lines = []
    for key, step in ways.items():
        precision = key[:4]
        peak = peaks[precision][1] / seconds[f"peak {precision}"]
        lines.append(
            [
                name,
                key,
                f"{1e3 * seconds[key]:.1f}",
                f"{seconds[BASELINE] / seconds[key]:.2f}",
                f"{options.batch_size / seconds[key]:.0f}",
                f"{sum(step.outside[1:]) / len(step.outside[1:]):.1%}",
                f"{convolved / seconds[key] / peak:.0%}",
                f"{NETWORKS[name][1] * 64 / options.batch_size * seconds[key] / 3600:.1f}",
            ]
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()
    keep_freed_memory()
    print("".join(f"{column:>16}" for column in COLUMNS))
    lines = []
    for name in options.networks:
        for line in lines_of(name, options, torch.device(options.device)):
            print("".join(f"{cell:>16}" for cell in line), flush=True)
            lines.append(line)
    if options.out is not None:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *lines])


if __name__ == "__main__":
    main()
