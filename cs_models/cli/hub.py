"""``cs-models hub``: cards of the shipped networks in the Hugging Face Hub's form, and uploads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cs_models.errors import CommandParser, UserError, report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = CommandParser(prog="cs-models hub", description="Shipped networks on the Hugging Face Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("card", help="print a network's card, or write it")
    writing.add_argument("network", help="name in the zoo")
    writing.add_argument("--out", type=Path, help="file to write, such as README.md")
    pushing = commands.add_parser("push", help="upload a network with its card; log in first: hf auth login")
    pushing.add_argument("network", help="name in the zoo")
    pushing.add_argument("repository", help="USER/NAME")
    pushing.add_argument("--ratio", type=float, help="for a network with weights for each ratio")
    pushing.add_argument("--private", action="store_true", help="make a private repository")
    try:
        options = parser.parse_args(arguments)
        from cs_models.evaluation.report.hub_card import hub_card

        if options.command == "push":
            from cs_models.zoo.hub import push
            from cs_models.zoo.methods import load

            card = hub_card(options.network, options.repository)
            print(push(load(options.network, options.ratio), options.repository, card, options.private))
            return 0
        card = hub_card(options.network)
        if options.out is None:
            print(card)
        else:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            card.save(options.out)
            print(options.out)
    except UserError as error:
        return report(error)
    except OSError as error:
        return report(f"cannot write the card: {error.strerror}, {error.filename}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
