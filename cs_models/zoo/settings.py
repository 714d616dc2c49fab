"""Settings of a method as they are typed, turned into the types that its constructor declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from cs_models.errors import UserError, nearest


def parameters_of(make: Callable[..., Any], title: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function.

    Raises:
        UserError: if it is one of those in C that do not tell.
    """
    try:
        return inspect.signature(make).parameters
    except ValueError:
        raise UserError(f"{title} does not say what arguments it takes; name a function around it") from None


def check_settings(title: str, settings: Sequence[tuple[str, str]], known: Collection[str]) -> None:
    """Raise UserError for a setting that a class or function does not have."""
    for key, _ in settings:
        if key not in known:
            if not known:
                raise UserError(f"{title} has no settings; got '{key}'")
            raise UserError(f"{title} has no setting '{key}'{nearest(key, known)}")


def typed_settings(make: Callable[..., Any], title: str, settings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The arguments for a class or function.

    Args:
        make: the class or function; what it declares no type for is read like YAML.
        title: what messages call it.
        settings: values as typed, by name.

    Raises:
        UserError: for an unknown setting or a value of another type.
    """
    if not settings:
        return {}
    from jsonargparse import ArgumentError, ArgumentParser

    parameters = parameters_of(make, title)
    check_settings(title, settings, parameters)
    values: dict[str, Any] = {}
    hints = get_type_hints(make.__init__ if isinstance(make, type) and not is_dataclass(make) else make)  # type: ignore[misc]
    for key, text in settings:
        if _takes_functions(hints.get(key)):
            raise UserError(f"{title}: {key} is a function, which Python sets and no command line")
        # The others may be of types that no command line gives, or required and given elsewhere.
        parser, others = ArgumentParser(exit_on_error=False), set[str | int](parameters) - {key}
        add = parser.add_class_arguments if isinstance(make, type) else parser.add_function_arguments
        add(make, "settings", fail_untyped=False, skip=others)
        try:
            values[key] = parser.parse_args([f"--settings.{key}={text}"]).settings[key]
        except (ArgumentError, RecursionError, TypeError, ValueError):
            expected = parameters[key].annotation
            raise UserError(f"{title}: {key}={text} is not of type {expected}") from None
    return values


def _takes_functions(kind: Any) -> bool:
    """Whether a type is that of functions, or a union with it."""
    return get_origin(kind) is Callable or any(map(_takes_functions, get_args(kind) if kind is not None else ()))
