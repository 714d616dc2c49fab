"""Configuration files that would take minutes or the whole stack to parse are refused first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cs_models.errors import UserError, first_line

# The longest configuration of a training, printed in full, has 10 KB, 300 values and 8 levels.
_LONGEST = 2**20
_MOST_VALUES = 20_000
_DEEPEST = 50

# Several times as fast as PyYAML's own, where it was built with libyaml.
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(path: str | Path) -> None:
    """Refuse a YAML file that is too long, too deep, or that multiplies its values by references to one another.

    What else is wrong with it is left to the parser.

    Raises:
        UserError: with the file and what it exceeds.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read the file of --config '{path}': {error.strerror or first_line(error)}") from error
    if len(content) > _LONGEST:
        raise UserError(f"the file of --config '{path}' is longer than {_LONGEST:,} bytes; no configuration is")
    try:
        _check_events(yaml.parse(content, Loader=_PARSER))
    except UserError as error:
        raise UserError(f"the file of --config '{path}' {error}; no configuration does") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        return


def _check_events(events: Iterator[Any]) -> None:
    """Count values as if every reference were written out, and levels."""
    sizes: dict[str, int] = {}  # of what an anchor names
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count where the node began
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            # A node that refers to itself has no size yet, and would have no end.
            count += sizes.get(event.anchor, _MOST_VALUES)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - before
        if count > _MOST_VALUES:
            raise UserError(f"has more than {_MOST_VALUES:,} values")
        if len(open_nodes) > _DEEPEST:
            raise UserError(f"has more than {_DEEPEST} levels")
