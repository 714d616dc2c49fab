"""Whether training in bfloat16 ends where training in float32 does, through train.py as users start it.

``python benchmarks/training_precision.py --config configs/train/r_coast.yaml --steps 300`` trains once in each
precision, from the same start and on the same crops and matrices, and prints the validation's PSNR at every ratio, the
differences to the first precision, and the time. What follows goes to train.py.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

from programs import run_program

from cs_models.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


def train(options: argparse.Namespace, precision: str) -> tuple[dict[str, float], float]:
    """PSNR in dB at the end, by name, and seconds.

    Raises:
        UserError: if the training fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "train.py", "fit", "--config", options.config, "--trainer.max_epochs=-1",
            f"--trainer.max_steps={options.steps}", f"--data.batches_per_epoch={options.steps}",
            f"--trainer.precision={precision}", "--trainer.enable_progress_bar=false",
            "--trainer.logger=pytorch_lightning.loggers.CSVLogger", f"--trainer.logger.save_dir={folder}",
            "--trainer.logger.name=run", "--trainer.logger.version=", *options.more,
        ]  # fmt: skip
        start = time.perf_counter()
        run_program(words, REPOSITORY)
        seconds = time.perf_counter() - start
        with open(Path(folder) / "run/metrics.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    return {
        name: float(row[name]) for row in rows for name in row if name.startswith("val/psnr") and row[name]
    }, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/train/quickstart.yaml")
    parser.add_argument("--precisions", default="32-true,bf16-mixed")
    parser.add_argument("--steps", type=int, default=300)
    options, more = parser.parse_known_args()
    options.more = more
    first: dict[str, float] | None = None
    try:
        for precision in options.precisions.split(","):
            quality, seconds = train(options, precision)
            first = first or quality
            for name, value in quality.items():
                print(
                    f"{precision:>12} {name:>12} {value:8.3f} dB {value - first[name]:+8.3f} dB {seconds:8.0f} s",
                    flush=True,
                )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
