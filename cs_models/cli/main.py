"""``cs-models``: one command, whose subcommands are the programs of this framework."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from cs_models import __version__
from cs_models.cli.importing import INTERRUPTED, importing
from cs_models.errors import UserError, memory_in_one_line, nearest, report

# By name: what runs it, the words that go before the user's own, one line of description.
COMMANDS = {
    "quickstart": ("cs_models.cli.quickstart:main", (), "train a small network and compare it, in minutes"),
    "train": ("cs_models.cli.train:main", (), "train a network (train.py)"),
    "eval": ("cs_models.cli.evaluate:main", (), "compare methods on images or signals (eval.py)"),
    "measure": ("cs_models.cli.measure:main", (), "keep the measurements of images alone, to train on them"),
    "samples": ("cs_models.cli.samples:main", (), "write files to try the commands of the documentation with"),
    "list": ("cs_models.cli.evaluate:main", ("--list",), "show every method, operator and data set"),
    "download": ("datamodules.download:main", (), "fetch a data set and verify it"),
    "import": ("cs_models.zoo.import_official:main", (), "turn a released checkpoint into one of ours"),
    "export": ("cs_models.zoo.export:main", (), "write a network with its sampling as ONNX graphs"),
    "convert": ("cs_models.zoo.checkpoints:main", (), "turn a .ckpt of a training into a .safetensors file"),
    "iterates": ("cs_models.evaluation.iterates:main", (), "show a reconstruction iteration by iteration"),
    "merge": ("cs_models.evaluation.report.merge:main", (), "join results folders into one report"),
    "report": ("cs_models.evaluation.report.paper:main", (), "write a report anew, or LaTeX and Markdown tables of it"),
    "leaderboard": ("cs_models.evaluation.leaderboard:main", (), "make a page of results that opens in a browser"),
    "cards": ("cs_models.evaluation.report.cards:main", (), "put networks into the zoo and write its cards"),
    "hub": ("cs_models.cli.hub:main", (), "cards for the Hugging Face Hub, and uploads"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of the subcommand."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"cs-models {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        return report(f"unknown command '{name}'{nearest(name, COMMANDS)}")
    target, first, _ = COMMANDS[name]
    module, _, function = target.partition(":")
    with importing():
        program = getattr(importlib.import_module(module), function)
    try:
        with memory_in_one_line(f"cs-models {name}", "try it with less at a time"):
            status = program([*first, *rest])
    except UserError as error:
        return report(error)
    except KeyboardInterrupt:  # where the program does not say how to go on
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return int(status or 0)


def usage() -> str:
    """What ``cs-models --help`` prints."""
    lines = [f"  {name:<12}{summary}" for name, (_, _, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "Compressed sensing: train, evaluate and compare reconstruction methods.",
            "",
            "usage: cs-models COMMAND [options]; cs-models COMMAND --help says more",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
