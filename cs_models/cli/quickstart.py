"""`make quickstart`: train a small network on bundled photographs, compare it with training-free methods.

It runs the two commands that a user would run, and says which.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cs_models.cli import evaluate as evaluation
from cs_models.cli import train

TRAIN = ["fit", "--config", "configs/train/quickstart.yaml"]
EVALUATE = ["--config", "configs/eval/quickstart.yaml"]


def main() -> int:
    """Train, evaluate, and say where the results are; the exit status of the first step that failed."""
    for program, run, words in (("train.py", train.main, TRAIN), ("eval.py", evaluation.main, EVALUATE)):
        print(f"\n$ python {program} {' '.join(words)}\n", flush=True)
        status = run(words)
        if status != 0:
            return status
    print(f"\nreport: {Path('results/quickstart/report.md').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
