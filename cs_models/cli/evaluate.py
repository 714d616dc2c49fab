"""The benchmark: methods x datasets x CS ratios in one loop. See ``python eval.py --help``."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from cs_models.cli.allocator import keep_freed_memory
from cs_models.cli.configs import with_configs_found
from cs_models.cli.importing import INTERRUPTED, importing
from cs_models.errors import UserError, lost_process, memory_in_one_line, nearest, report
from cs_models.evaluation.options import Comparison, Execution, Measuring, Options, Output, check_text
from cs_models.files import is_file
from cs_models.launched import ending_together

if TYPE_CHECKING:
    from cs_models.evaluation.report.summary import Setting
    from cs_models.evaluation.results import Row

PARTS = {"comparison": Comparison, "measuring": Measuring, "execution": Execution, "output": Output}
TYPES = {name: kind for part in PARTS.values() for name, kind in get_type_hints(part).items()}

EXAMPLES = """\
examples:
  python eval.py --methods linear,omp,iht --datasets bundled --ratios 0.1,0.3 --out results/first
  python eval.py --methods ista_net_pp,clomp:recipe=released --datasets Set11 --ratios 0.1 --data_dir ~/data
  python eval.py --config configs/eval/NAME.yaml --limit 2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: the command line; that of the process where it is not given.

    Returns:
        the exit status: 0, or 2 after a user's mistake, which is told in one line.
    """
    keep_freed_memory(huge_pages=True)
    try:
        options = parse(arguments)
        if options is None:
            print_list()
        else:
            with ending_together(), memory_in_one_line("this evaluation", "try smaller images or --device cpu"):
                evaluate(options)
    except UserError as error:
        return report(error)
    except RuntimeError as error:
        lost = lost_process(error)
        if lost is None:
            raise
        return report(f"{lost}; the same command goes on where it stopped")
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def parse(arguments: Sequence[str] | None = None) -> Options | None:
    """The options of a command line; None where the list of methods, operators and datasets is wanted.

    Raises:
        UserError: for an unknown option, a value of the wrong type, or an unreadable YAML file.
    """
    words = with_configs_found(sys.argv[1:] if arguments is None else arguments, "eval")
    for word in words:
        check_text(word)
    try:
        values = build_parser().parse_args(words)
    except ArgumentError as error:
        raise UserError(explain(str(error))) from None
    except (AttributeError, TypeError, ValueError) as error:  # what the parser makes of some files that are no YAML
        raise UserError(f"cannot read the file of --config: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError("an option's value is nested too deep to be read") from None
    if values.list:
        return None
    # A YAML file may say null, which leaves the default.
    given = {name: value for name, value in vars(values).items() if value is not None}
    parts = {
        name: part(**{field.name: given[field.name] for field in dataclasses.fields(part) if field.name in given})
        for name, part in PARTS.items()
    }
    return Options(**parts)


class HelpFormatter(DefaultHelpFormatter):
    """Help as it was written: no types and defaults appended, the examples not wrapped."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help or ""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text


def build_parser() -> ArgumentParser:
    """The command line: the four parts of `Options`, each a group, then config, list and help."""
    parser = ArgumentParser(
        prog="eval.py",
        usage="eval.py --methods M1,M2 --datasets D1,D2 --ratios R1,R2 [options]",
        description="Measure images, reconstruct them by every method, and compare.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
        add_help=False,
        print_config=None,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for part in PARTS.values():
        group = parser.add_argument_group(str(part.__doc__).rstrip("."))
        types = get_type_hints(part)
        for field in dataclasses.fields(part):
            words = {"help": field.metadata["help"], "default": field.default}
            if types[field.name] is bool:
                group.add_argument(f"--{field.name}", action="store_true", **words)
            else:
                metavar = field.metadata["metavar"]
                kind = folder if types[field.name] is Path else types[field.name]
                group.add_argument(f"--{field.name}", type=kind, metavar=metavar, **words)
    group = parser.add_argument_group("More")
    group.add_argument("--config", action="config", metavar="YAML", help="file with any of these options; later wins")
    group.add_argument("--list", action="store_true", help="show every method, operator and dataset")
    group.add_argument("-h", "--help", action="help", help="show this help")
    return parser


def folder(name: object) -> Path:
    """The path of a folder to write to; an empty name is a mistake, such as a variable that is not set."""
    if not str(name):
        raise ValueError("the name of a folder is empty")
    return Path(str(name))


def explain(message: str) -> str:
    """A parser's message as one line that says what was expected, or which option is near."""
    unknown = re.search(r"unrecognized arguments: ?(\S*)|Option '(\S+)' is not accepted", message)
    if unknown:
        word = unknown[1] or unknown[2] or ""
        return f"unknown option '{word}'{nearest(word.lstrip('-').partition('=')[0], TYPES)}"
    wrong = re.match(r'Parser key "(\w+)"', message)
    if wrong and wrong[1] in TYPES:
        given = re.search(r"(?:Given value|could not convert string to float|invalid literal.*): (.*)", message)
        return f"--{wrong[1]} expects {describe(TYPES[wrong[1]])}" + (f"; got {given[1]}" if given else "")
    invalid = re.match(r"argument --(\w+): invalid", message)
    if invalid and invalid[1] in TYPES:
        return f"--{invalid[1]} expects {describe(TYPES[invalid[1]])}"
    if message.startswith("Unexpected config"):
        return "the file of --config must name options and their values, as in 'methods: [linear, omp]'"
    return " ".join(message.split())


def describe(kind: Any) -> str:
    """A type in a user's words."""
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(choices)
    if choices:  # one type or None
        return describe(choices[0])
    if issubclass(kind, tuple):
        return str(kind.__doc__).rstrip(".").lower()
    words = {int: "a whole number", float: "a number", bool: "true or false", Path: "the name of a folder"}
    return words.get(kind, "text")


def evaluate(options: Options) -> None:
    """Run a comparison and write its tables, report and figures.

    Raises:
        UserError: for any mistake of the user's; what was computed before is kept.
    """
    check_names(options.comparison)
    # Imported late, so that --help and mistakes in the command line answer at once.
    if options.measuring.measurements is not None:
        with importing():
            from cs_models.evaluation.measurements import reconstruct_measurements

        print(reconstruct_measurements(options))
        return
    with importing():
        from cs_models.evaluation.loop import run
        from cs_models.evaluation.plan import Plan
        from cs_models.evaluation.report.tables import write_report

    rows = run(Plan(options))
    if rows:
        print(write_report(rows, options.output.out))
    if rows and options.comparison.image is not None:
        print(places_of(options.comparison.image, rows, options.output.out))
    perceptual: dict[Setting, dict[str, float]] = {}
    if rows and (options.output.lpips or options.output.fid):
        from cs_models.evaluation.perceptual import add_perceptual

        table, perceptual = add_perceptual(rows, options.output.out, options.output.lpips, options.output.fid)
        print(table)
    if rows and options.output.wandb is not None:
        from cs_models.evaluation.report.wandb_log import log_comparison

        log_comparison(rows, options, perceptual)


def places_of(image: str, rows: Sequence[Row], out: Path) -> str:
    """A line for each reconstruction of ``--image`` that counts: what it is, and where it lies."""
    from cs_models.evaluation.pictures import Pictures
    from cs_models.evaluation.report.summary import current_rows, label
    from datamodules.names import origin_of

    shown = [row for row in current_rows(rows) if row.origin == origin_of(Path(image))]
    lines = [
        f"{label(row)} at {row.ratio:g}, {row.psnr_db:.2f} dB: {Pictures.of_row(out, row).reconstruction}"
        for row in shown
    ]
    return "\n".join(["", "reconstructions:", *lines])


def check_names(comparison: Comparison) -> None:
    """Look up methods, their settings, and sets of images, before anything heavy is imported.

    Raises:
        UserError: for a name that does not exist, with the nearest one, or a missing file.
    """
    with importing():
        from cs_models.zoo.methods import parse_methods
        from datamodules.catalog import find_images
        from datamodules.images import read_image
        from datamodules.signals import names_signals

    parse_methods(comparison.methods, comparison.ratios)
    for name in comparison.datasets:
        if not names_signals(name):
            find_images(name, comparison.data_dir)
    if comparison.image is not None and not is_file(comparison.image):
        read_image(comparison.image)


def print_list() -> None:
    """Print every method, operator and dataset with a line each."""
    from cs_models.operator_names import list_operators
    from cs_models.zoo.methods import list_methods
    from datamodules.catalog import CATALOG
    from datamodules.signals import SIGNALS

    tables = {
        "methods": list_methods(),
        "operators": list_operators(),
        "datasets": [(image_set.name, image_set.summary) for image_set in CATALOG.values()],
        "datasets of 1-D signals": [(signal_set.name, signal_set.summary) for signal_set in SIGNALS.values()],
    }
    for title, lines in tables.items():
        print(f"{title}:")
        for name, summary in lines:
            print(f"  {name:20} {summary}")


if __name__ == "__main__":
    sys.exit(main())
