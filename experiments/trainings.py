"""The networks that the experiments train, as ``networks.yaml`` names them, and what a scale makes of them.

Experiments that name the same network share its training.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cs_models.errors import UserError, nearest

NETWORKS = "networks.yaml"


@dataclass(frozen=True)
class Network:
    """A network that is trained.

    Attributes:
        words: options of train.py.
        each_ratio: whether every ratio has a training of its own.
        families: what a scale changes in it goes by these.
        settings: what a figure has on an axis, by name.
        ratios: the only ones that it can be trained for, where it is not any.
    """

    words: str
    each_ratio: bool = False
    families: tuple[str, ...] = ("unfolding",)
    settings: dict[str, float | str] = field(default_factory=dict)
    ratios: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Chosen:
    """A network of an experiment.

    Attributes:
        name: in ``networks.yaml``.
        network: what it is.
        trained_at: the ratio of its training, where that is not the ratio of the evaluation.
    """

    name: str
    network: Network
    trained_at: float | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.name if self.trained_at is None else f"{self.name}@{self.trained_at:g}"

    def exists_at(self, ratio: float) -> bool:
        """Whether there can be a network for a ratio."""
        return self.network.ratios is None or self._ratio(ratio) in self.network.ratios

    def training(self, ratio: float) -> str:
        """The name of the training whose network is evaluated at a ratio."""
        return f"{self.name}_{percent(self._ratio(ratio))}" if self.network.each_ratio else self.name

    def words(self, ratio: float) -> str:
        """The options of that training."""
        own = f" --model.init_args.training.sampling.ratios=[{self._ratio(ratio)}]" if self.network.each_ratio else ""
        return self.network.words + own

    def _ratio(self, ratio: float) -> float:
        return ratio if self.trained_at is None else self.trained_at


def read_networks(folder: Path) -> dict[str, Network]:
    """The networks of ``networks.yaml`` by name.

    An entry with ``grid`` is one for each combination of its values, which stand in the place of ``{NAME}`` in the
    entry's name and words.

    Raises:
        UserError: for an entry that says what no network has.
    """
    path = folder / NETWORKS
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return {name: network for key, entry in content.items() for name, network in _entries(key, dict(entry))}
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: {error}") from error


def choose(wanted: str, networks: dict[str, Network]) -> Chosen:
    """The network of a word such as ``coast``, or ``idm@0.3``, which is trained at 30 % whatever is evaluated.

    Raises:
        UserError: for a name that is not in ``networks.yaml``.
    """
    name, _, ratio = wanted.partition("@")
    if name not in networks:
        raise UserError(f"unknown network '{name}'{nearest(name, list(networks))}")
    return Chosen(name, networks[name], float(ratio) if ratio else None)


def at_scale(network: Network, scale: dict[str, Any], data_dir: str | None) -> Network:
    """The network with what a scale adds to its training."""
    known = scale.get("families", {})
    words = [network.words, scale["train"], *(known.get(family, "") for family in network.families)]
    data = [] if data_dir is None else ["--data.data_dir", shlex.quote(data_dir)]
    return replace(network, words=" ".join(filter(None, [*words, *data])))


def _entries(key: str, entry: dict[str, Any]) -> Iterator[tuple[str, Network]]:
    grid = entry.pop("grid", {})
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        words = entry["words"].format(**settings) if grid else entry["words"]
        own = entry.get("settings", {}) | settings
        yield key.format(**settings), Network(**entry | {"words": words, "settings": own})


def percent(ratio: float) -> str:
    """A ratio in the name of a training."""
    return f"{100 * ratio:g}".replace(".", "p")
