"""What starting a command costs: CPU seconds of a whole process as multiples of those of ``import torch``.

``python benchmarks/startup.py`` runs each command several times in turns, and shows the least beside the goal.
Seconds are those of one thread, user and system together, so that other work on the machine changes them little. The
picture is small and the solver the simplest one: what is measured is the way there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from programs import run_program

from cs_models.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
IMPORT_TORCH = "import torch"
EVALUATE = (
    "eval.py", "--image", "{out}/picture.png", "--channels", "luminance", "--ratios", "0.1", "--device", "cpu",
    "--out", "{out}", "--methods",
)  # fmt: skip
TRAIN = (
    "train.py", "fit", "--config", "r_coast", "--data.train_sets", "[bundled-train]", "--data.validation_sets", "[]",
    "--data.batch_size", "1", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu",
    "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
    "--trainer.logger.init_args.save_dir", "{out}",
)  # fmt: skip
# The words of a program, and how many times `import torch` it may take.
COMMANDS: dict[str, tuple[tuple[str, ...], float]] = {
    IMPORT_TORCH: (("-c", "import torch"), 1.0),
    "eval.py --help": (("eval.py", "--help"), 0.2),
    "eval.py --list": (("eval.py", "--list"), 0.3),
    "one solver on one image": ((*EVALUATE, "pinv"), 1.6),
    "one network on one image": ((*EVALUATE, "r_coast"), 1.8),
    "load('r_coast')": (("-c", "from cs_models import load; load('r_coast')"), 1.5),
    "train.py fit, one step": (TRAIN, 3.0),
}


def cpu_seconds(words: tuple[str, ...]) -> float:
    """User and system time of a Python program in a process of its own.

    Raises:
        UserError: if it failed.
    """
    with tempfile.TemporaryDirectory() as out:
        Image.linear_gradient("L").resize((66, 66)).save(Path(out) / "picture.png")
        before = os.times()
        run_program([word.format(out=out) for word in words], ROOT)
        after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each command, of which the least counts (3)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds = dict.fromkeys(COMMANDS, float("inf"))
    try:
        for _ in range(options.repeats):
            for name, (words, _) in COMMANDS.items():
                seconds[name] = min(seconds[name], cpu_seconds(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'command':28}{'CPU seconds':>12}{'x import torch':>16}{'goal':>8}")
    for name, (_, goal) in COMMANDS.items():
        print(f"{name:28}{seconds[name]:12.2f}{seconds[name] / seconds[IMPORT_TORCH]:16.2f}{goal:8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
