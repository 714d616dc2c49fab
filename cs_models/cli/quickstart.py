"""``make quickstart``, ``cs-models quickstart``: train a small network, compare it with training-free methods.

It runs the two commands that a user would run, and says which. Weights and photographs come with the project and its
dependencies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cs_models.cli import evaluate, train

TRAIN = ["fit", "--config", "configs/train/quickstart.yaml"]
EVALUATE = ["--config", "configs/eval/quickstart.yaml"]
TRAINING_FREE = ["linear", "omp", "iht", "clomp_warm", "pnp"]
HELP = """\
usage: cs-models quickstart

Fine-tunes a small network on photographs that scikit-image brings along, compares it with training-free methods on
others of them, and writes runs/quickstart and results/quickstart into the folder where it is typed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, evaluate, and say where the results are; the exit status of the first step that failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words:
        if words[0] in ("-h", "--help"):
            print(HELP)
            return 0
        print(f"error: quickstart takes no options; got '{words[0]}'", file=sys.stderr)
        return 2
    print("This takes about 2 minutes on two processor cores.")
    _say("train.py", TRAIN)
    try:
        folder = train.train(TRAIN).trainer.log_dir or "."
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message = train.explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    evaluation = [*EVALUATE, "--methods", ",".join([*TRAINING_FREE, (Path(folder) / "model.safetensors").as_posix()])]
    _say("eval.py", evaluation)
    status = evaluate.main(evaluation)
    if status == 0:
        print(f"\nreport: {Path('results/quickstart/report.md').resolve()}")
    return status


def _say(program: str, words: Sequence[str]) -> None:
    print(f"\n$ python {program} {' '.join(words)}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
