"""How fast networks reconstruct: channels_last, bfloat16 and torch.compile against eager float32 in NCHW order.

``python benchmarks/inference.py r_coast ista_net_pp --ratio 0.1`` for networks of the zoo or checkpoint files. All
alternatives run in turns in one process, which keeps freed memory as eval.py does. The last columns give the PSNR
against the original photograph, and the network's convolutions as a share of the speed of plain ones in the same
precision.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import convolutions, median_seconds
from torch.utils.flop_counter import FlopCounterMode

from cs_models import load
from cs_models.cli.allocator import keep_freed_memory
from cs_models.errors import UserError
from cs_models.metrics import psnr
from cs_models.operators import MeasurementOperator
from cs_models.training.module import ReconstructionModule
from datamodules.catalog import load_set

COLUMNS = ("network", "alternative", "milliseconds", "times faster", "PSNR in dB", "share of peak")
BASELINE = "fp32 NCHW"


def alternatives(
    name: str, ratio: float, y: torch.Tensor, operator: MeasurementOperator, compiled: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    """The ways to run a network, the baseline first."""

    def way(precision: torch.dtype, memory_format: torch.memory_format, compiled: bool) -> Callable[[], torch.Tensor]:
        module = load(name, ratio).to(y.device)
        module.network.to(memory_format=memory_format)
        if compiled:
            module.compile_layers()
        return lambda: _run(module, y, operator, precision)

    ways = {
        BASELINE: way(torch.float32, torch.contiguous_format, False),
        "fp32": way(torch.float32, torch.channels_last, False),
        "bf16": way(torch.bfloat16, torch.channels_last, False),
    }
    if compiled:
        ways["fp32 compiled"] = way(torch.float32, torch.channels_last, True)
        ways["bf16 compiled"] = way(torch.bfloat16, torch.channels_last, True)
    return ways


def _run(
    module: ReconstructionModule, y: torch.Tensor, operator: MeasurementOperator, precision: torch.dtype
) -> torch.Tensor:
    with torch.autocast(y.device.type, precision, enabled=precision != torch.float32):
        return module.reconstruct(y, operator)


def lines_of(name: str, options: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Every alternative of one network."""
    _, image = load_set("bundled", None, "luminance", 1)[0]
    x = image[None, :, : options.size, : options.size].to(device)
    operator = load(name, options.ratio).default_operator(options.ratio, (x.shape[-2], x.shape[-1])).to(device)
    y = operator(x)
    ways = alternatives(name, options.ratio, y, operator, options.compile)
    peaks = {
        "fp32": convolutions(device, torch.float32, x[0, 0].numel()),
        "bf16": convolutions(device, torch.bfloat16, x[0, 0].numel()),
    }
    calls: dict[str, Callable[[], object]] = {**ways, **{f"peak {key}": call for key, (call, _) in peaks.items()}}
    seconds = median_seconds(calls, options.repeats, device)
    with FlopCounterMode(display=False) as counter:
        ways["fp32"]()
    convolved = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, counter.get_total_flops())
    lines = []
    for way, call in ways.items():
        precision = way[:4]
        peak = peaks[precision][1] / seconds[f"peak {precision}"]
        lines.append(
            [
                Path(name).stem,
                way,
                f"{1e3 * seconds[way]:.1f}",
                f"{seconds[BASELINE] / seconds[way]:.2f}",
                f"{psnr(call().clamp(0, 1), x).item():.3f}",
                f"{convolved / seconds[way] / peak:.0%}",
            ]
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", help="names of the zoo, or checkpoint files")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=256, help="side of the image")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()
    keep_freed_memory(huge_pages=True)
    print("".join(f"{column:>16}" for column in COLUMNS))
    lines = []
    try:
        for name in options.networks:
            for line in lines_of(name, options, torch.device(options.device)):
                print("".join(f"{cell:>16}" for cell in line))
                lines.append(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out is not None:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *lines])
    return 0


if __name__ == "__main__":
    sys.exit(main())
