"""Configuration files by name, and class paths of earlier versions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cs_models.cli.yaml_limits import check_yaml
from cs_models.errors import UserError, nearest
from cs_models.files import is_file, shipped

# Where modules of version 0.1 are now; the longest beginning of a path counts.
RENAMED = {
    "cs_models.unfolding": "cs_models.networks.unfolding",
    "cs_models.learned": "cs_models.networks.learned_sampling",
    "cs_models.diffusion": "cs_models.networks.diffusion",
    "cs_models.diffusion.wiring": "cs_models.networks.invertible",
    "cs_models.diffusion.injector": "cs_models.networks.injector",
    "cs_models.loggers": "cs_models.training.loggers",
    "cs_models.callbacks": "cs_models.training.callbacks",
    "cs_models.checkpoint_io": "cs_models.training.checkpoint_io",
    "cs_models.sharding": "cs_models.training.sharding",
}
_OLD_PATH = re.compile(r"\b(" + "|".join(re.escape(old) for old in sorted(RENAMED, reverse=True)) + r")(?=\.\w)")


def renamed(text: str) -> str:
    """A text with the class paths of earlier versions replaced by today's."""
    return _OLD_PATH.sub(lambda match: RENAMED[match[1]], text)


def find_config(name: str, kind: str) -> str:
    """The path of a configuration: a file of the user's, or one that is shipped.

    Args:
        name: a path, or the name of a shipped configuration as its path (``configs/train/r_coast.yaml``,
            ``override/cpu.yaml``) or without folder and suffix (``r_coast``, ``cpu``).
        kind: "train" or "eval".

    Raises:
        UserError: if there is no such file, or one that is too large or too deep for a configuration.
    """
    if is_file(name):
        check_yaml(name)
        return name
    folder = shipped("configs") / kind
    known = {path.stem: path for path in sorted(folder.rglob("*.yaml"))}
    inside = folder / name.removeprefix(f"configs/{kind}/")
    for path in (inside, known.get(name)):
        if path is not None and is_file(path):
            return str(path)
    raise UserError(f"configuration not found: {name}{nearest(Path(name).stem, known)}")


def with_configs_found(words: Sequence[str], kind: str) -> list[str]:
    """A command line with the path of every ``--config`` filled in.

    Raises:
        UserError: see `find_config`.
    """
    found = list(words)
    for place, word in enumerate(words):
        if word.startswith("--config="):
            found[place] = f"--config={find_config(word.removeprefix('--config='), kind)}"
        elif place and words[place - 1] == "--config" and not word.startswith("--"):
            found[place] = find_config(word, kind)
    return found
