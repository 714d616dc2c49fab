"""Training throughput against the number of processes and the precision, through train.py as users start it.

``python benchmarks/scaling.py --config configs/train/r_coast.yaml --data_dir data`` starts one short training for each
row, in turns and each `--repeats` times, and prints patches per second, median over the repeats, and the multiple of
one process with the first precision. The batch of a process is the same in all rows, so that two processes do
twice the work of one; ideal is 2. On a GPU machine: ``--devices 1,2,4,8 --precisions 32-true,bf16-mixed,16-mixed``.
Options that it does not know go to train.py.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from programs import run_program

from cs_models.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
WARM_UP, MEASURED = 20, 40


def patches_per_second(options: argparse.Namespace, devices: int, precision: str) -> float:
    """Throughput after a warm-up, as the callback `Throughput` logs it.

    Raises:
        UserError: if the training fails, with the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "train.py", "fit", "--config", options.config, *options.more,
            f"--trainer.devices={devices}", f"--trainer.precision={precision}", f"--trainer.accelerator={options.kind}",
            f"--trainer.max_steps={WARM_UP + MEASURED}", f"--data.batches_per_epoch={WARM_UP + MEASURED}",
            "--data.validation_sets=[]", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
            "--trainer.callbacks+=cs_models.training.callbacks.Throughput",
            f"--trainer.callbacks.every_n_batches={WARM_UP}",
            "--trainer.logger=pytorch_lightning.loggers.CSVLogger", f"--trainer.logger.save_dir={folder}",
            "--trainer.logger.name=run", "--trainer.logger.version=", f"--data.batch_size={options.batch_size}",
        ]  # fmt: skip
        if options.data_dir:
            words.append(f"--data.data_dir={options.data_dir}")
        try:
            run_program(words, REPOSITORY)
        except UserError as error:
            raise UserError(f"train.py with {devices} processes, {precision}: {error}") from None
        with open(Path(folder) / "run/metrics.csv", encoding="utf-8") as file:
            found = [row.get("train/patches_per_second") for row in csv.DictReader(file)]
    return statistics.median([float(value) for value in found if value][1:])


def numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [int(word) for word in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/train/r_coast.yaml")
    parser.add_argument("--data_dir")
    parser.add_argument("--devices", type=numbers, default="1,2", help="numbers of processes or GPUs")
    parser.add_argument("--precisions", default="bf16-mixed")
    parser.add_argument("--batch_size", type=int, default=64 if torch.cuda.is_available() else 8, help="of a process")
    parser.add_argument("--kind", choices=["cpu", "gpu"], default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    options, more = parser.parse_known_args()
    options.more = more
    cases = [(n, precision) for precision in options.precisions.split(",") for n in options.devices]
    speeds: dict[tuple[int, str], list[float]] = defaultdict(list)
    try:
        for _ in range(options.repeats):
            for case in cases:
                speeds[case].append(patches_per_second(options, *case))
                print(f"{case[0]} processes, {case[1]}: {speeds[case][-1]:.0f} patches/s", file=sys.stderr, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first = statistics.median(speeds[cases[0]])
    print(f"{'processes':>9} {'precision':>12} {'patches/s':>10} {'times':>6}")
    for devices, precision in cases:
        speed = statistics.median(speeds[devices, precision])
        print(f"{devices:9} {precision:>12} {speed:10.0f} {speed / first:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
