"""Settings of unknown origin: plain values of limited size, of the types that are declared, within their ranges."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cs_models.errors import UserError, nearest
from cs_models.host_memory import check_memory

# A configuration has a few hundred values, a dozen levels deep where trainings went on from one another.
_MOST_VALUES = 100_000
_DEEPEST = 64

Settings = TypeVar("Settings")


def check_range(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Refuse a setting outside ``least..most``, or one that is not finite; None is no setting.

    Raises:
        UserError: with the setting's name, its value and the limit.
    """
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}")
    if value < least:
        raise UserError(f"{name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise UserError(f"{name} must be at most {most}, got {value}")


def check_distinct(name: str, values: tuple[Any, ...]) -> None:
    """Refuse a list that names something twice.

    Raises:
        UserError: with the list's name and the value.
    """
    for place, value in enumerate(values):
        if value in values[:place]:
            raise UserError(f"{name} names {value} twice")


def check_network_size(layers: int, features: int, name: str = "layers") -> None:
    """Refuse numbers of layers and features that make no network, or one too large for this machine's memory.

    Args:
        layers: of them.
        features: channels of the 3x3 convolutions, of which every layer has at least one.
        name: of the setting of the layers.

    Raises:
        UserError: with the setting and what it may be, or what it needs.
    """
    check_range(name, layers, 1, 1000)
    check_range("features", features, 1, 2**16)
    # Weights in float32, their gradients, and the two means of Adam.
    check_memory(16 * layers * 9 * features**2, f"a network of {layers} layers with {features} features")


def plain_values(value: Any) -> Any:
    """A copy of values such as JSON holds, with tuples for lists.

    Raises:
        UserError: for a value of another kind, and for more or deeper ones than any configuration has, which may be
            few in a file that refers to them again and again.
    """
    count = itertools.count()

    def copy(item: Any, depth: int) -> Any:
        if depth > _DEEPEST or next(count) > _MOST_VALUES:
            raise UserError(f"nested deeper than {_DEEPEST} levels, or of more than {_MOST_VALUES:,} values")
        if isinstance(item, dict) and all(isinstance(key, str) for key in item):
            return {key: copy(inner, depth + 1) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return tuple(copy(inner, depth + 1) for inner in item)
        if type(item) is int and abs(item) >= 2**63:
            raise UserError("a whole number in it has more than 63 bits")
        if isinstance(item, NoneType | bool | int | float | str):
            return item
        raise UserError(f"it holds a {type(item).__name__}; expected numbers, texts, lists and dictionaries of these")

    return copy(value, 0)


def typed(cls: type[Settings], values: Any, name: str) -> Settings:
    """A dataclass from plain values, each of the type that its field declares.

    Args:
        cls: the dataclass; fields may be dataclasses themselves.
        values: from `plain_values`, by field.
        name: what to call it in errors.

    Raises:
        UserError: for an unknown field, a value of another type, or one outside its range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is of type {type(values).__name__}; expected names and values")
    hints = get_type_hints(cls)
    given = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{name} has no setting '{key}'{nearest(key, hints)}")
        if dataclasses.is_dataclass(hints[key]):
            value = typed(hints[key], value, f"{name}.{key}")
        elif not _fits(hints[key], value):
            expected = str(getattr(hints[key], "__name__", hints[key])).replace("typing.", "")
            raise UserError(f"{name}.{key} is {str(value)[:40]!r}; expected {expected}")
        given[key] = value
    return cls(**given)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a plain value is of a type; numbers that are whole are floats too, true and false are no numbers."""
    arguments, origin = get_args(kind), get_origin(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(option, value) for option in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    return type(value) in ((int, float) if kind is float else (kind,))
