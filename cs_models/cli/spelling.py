"""Misspelt settings of a training, found before anything heavy is imported.

The names are those of the sources, see `cs_models.signatures`. What is not known for certain is left to the parser:
nothing is refused here that it would accept.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cs_models.cli.configs import renamed
from cs_models.errors import UserError, nearest
from cs_models.signatures import Parameters, fields_of, method_parameters, parameters

TRAINER = "cs_models.training.trainer:Trainer"
SUBCOMMANDS = ("fit", "validate")
# Groups of settings, and whose constructor takes them; that of a model is named by its class path.
GROUPS = {
    "trainer": TRAINER,
    "data": "datamodules.patches:PatchDataModule",
    "checkpoint": "cs_models.training.checkpoint_io:TrainingCheckpoint",
}
ALONE = {"config", "print_config", "help", "seed_everything", "optimizer", "lr_scheduler", "model"}
# What stands beside or in place of the arguments of a class.
CLASS_KEYS = {"class_path", "init_args", "dict_kwargs", "help"}
CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


@dataclass(frozen=True)
class Setting:
    """One thing that the user set.

    Attributes:
        path: its name, in parts.
        value: as it was read.
        file: the configuration where it stands; None for the command line.
    """

    path: tuple[str, ...]
    value: Any = None
    file: str | None = None

    def refused(self, misspelt: str, known: Sequence[str]) -> UserError:
        """What to tell of a part of the name that does not exist."""
        name = ".".join(self.path)
        hint = nearest(misspelt, known)
        if "did you mean" not in hint and len(known) > 20:
            hint = "; python train.py fit --help shows them all"
        return UserError(
            f"unknown option '--{name}'{hint}" if self.file is None else f"{self.file}: unknown key '{name}'{hint}"
        )


def check_spelling(words: Sequence[str]) -> None:
    """Look through a command line of train.py, which begins with its subcommand, and the files of its ``--config``.

    Raises:
        UserError: for a subcommand, an option or a key of a file that does not exist, with the nearest one.
    """
    subcommand, *options = words
    if subcommand not in SUBCOMMANDS:
        raise UserError(f"unknown subcommand '{subcommand}'{nearest(subcommand, SUBCOMMANDS)}")
    settings = list(_settings(options))
    # A class that stands in for the one that is declared may have further arguments.
    replaced = {one.path[:-1] for one in settings if one.path[-1] == "class_path"} - {("model",)}
    models = [one.value for one in settings if _names_model(one)]
    # Before the first class is named the one that follows is meant, if there is but one.
    model = models[0] if len(set(models)) == 1 else None
    for setting in settings:
        model = setting.value if _names_model(setting) else model
        if not any(setting.path[: len(prefix)] == prefix for prefix in replaced):
            _check(setting, subcommand, model)


def _names_model(setting: Setting) -> bool:
    return setting.path in (("model",), ("model", "class_path")) and isinstance(setting.value, str)


def _settings(options: Sequence[str]) -> Iterator[Setting]:
    """What a command line sets, in the order in which it counts."""
    for place, word in enumerate(options):
        if word == "--":
            return
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals and place + 1 < len(options):
            value = options[place + 1]
        if name == "config":
            yield from _read(value)
        elif name:
            yield Setting(_parts(name), value)


def _read(file: str) -> Iterator[Setting]:
    """The settings of a file; none of one that cannot be read, of which the parser will tell."""
    try:
        content = yaml.safe_load(renamed(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return
    yield from _flat(content, (), file)


def _flat(content: Any, path: tuple[str, ...], file: str) -> Iterator[Setting]:
    if not isinstance(content, dict):
        return
    # The class first, since the other keys are its arguments.
    for key in sorted(content, key=lambda key: key != "class_path"):
        here = (*path, *_parts(str(key)))
        if path or key not in SUBCOMMANDS:
            yield Setting(here, content[key], file)
            yield from _flat(content[key], here, file)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.removesuffix("+").split("."))


def _check(setting: Setting, subcommand: str, model: str | None) -> None:
    top, *rest = setting.path
    if top in GROUPS:
        _check_names(setting, rest, parameters(GROUPS[top]))
    elif top == "model" and rest:
        inner = rest[1:] if rest[0] == "init_args" else rest
        _check_names(setting, inner, parameters(model) if model and CLASS_PATH.fullmatch(model) else None)
    elif top not in ALONE and not top.startswith("print_"):
        own = method_parameters(TRAINER, subcommand) or {}
        known = sorted({*GROUPS, *ALONE, *own})
        # Further ones may come with another release of Lightning.
        if top not in own and difflib.get_close_matches(top, known):
            raise setting.refused(top, known)


def _check_names(setting: Setting, names: Sequence[str], known: Parameters | None) -> None:
    """Follow a name through the arguments of a class, and those that are dataclasses themselves."""
    for name in names:
        if known is None or name in CLASS_KEYS:
            return
        if name not in known:
            raise setting.refused(name, sorted(known))
        known = fields_of(known[name])
