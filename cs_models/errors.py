"""Errors that a user can cause, each with one line that says what was wrong and what to do."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

# Of a message to the user; names that they gave may be as long as the command line.
LONGEST_LINE = 1000
# How gloo and NCCL tell that the other end of a connection is gone.
_CONNECTION = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|gloo.*(timed out|Timed out)|Socket Timeout|NCCL.*remote process",
    re.DOTALL,
)

# How torch and numpy tell that there is too little memory where they do not say so by the type of the error.
_HOST_MEMORY = re.compile(r"can't allocate memory|not enough memory|std::bad_alloc")
_GPU_MEMORY = re.compile(r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")


_Error = TypeVar("_Error", bound=BaseException)


class UserError(ValueError):
    """A wrong path, name, ratio, shape or file.

    The message is one line: what was wrong, what was expected, what to do. The command-line programs print it
    and exit with status 2; a traceback would add nothing.
    """


class LostProcessError(UserError):
    """One of the processes that share a run is gone."""


class CommandParser(argparse.ArgumentParser):
    """Argparse's parser, except that a wrong command line is a `UserError` and prints no usage before it."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; {self.prog} --help shows how it is used")


def report(error: object) -> int:
    """Print an error as one line on the error stream, whatever names and bytes the user gave that it repeats.

    Returns:
        2, the exit status after a user's mistake.
    """
    text = "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(error).strip())
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 2 :]}"
    print(f"error: {text}", file=sys.stderr)
    return 2


def _escaped(letter: str) -> str:
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


def nearest(name: str, choices: Iterable[str]) -> str:
    """Ending of an error message: the nearest known name, or the known names.

    Args:
        name: what the user typed.
        choices: the names that exist.

    Returns:
        ``"; did you mean 'x'?"`` or ``"; choose from a, b, c"``.
    """
    known = list(choices)
    by_lower_case = {choice.lower(): choice for choice in known}
    match = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{by_lower_case[match[0]]}'?"
    return "; choose from " + ", ".join(sorted(known))


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` that led to an error: itself, or one further up its chain. Parsers wrap what they call."""
    return find_cause(error, UserError)


def find_cause(error: BaseException, kind: type[_Error]) -> _Error | None:
    """The first error of a kind in the chain of causes, from the error itself on."""
    return next((link for link in _chain(error) if isinstance(link, kind)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def lost_process(error: BaseException) -> LostProcessError | None:
    """What to say where one of several processes ended and torch tells the others in a hundred lines; else None."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "DistError" in kinds or ("RuntimeError" in kinds and _CONNECTION.search(str(error))):
        return LostProcessError("another process of this run ended: killed, out of memory, or by an error of its own")
    return None


def short_of_memory(error: BaseException) -> str | None:
    """Whose memory was too small, "the GPU" or "this machine"; None for an error with causes of other kinds alone."""
    return next(filter(None, map(_short_of_memory, _chain(error))), None)


def _short_of_memory(error: BaseException) -> str | None:
    text = str(error) if isinstance(error, RuntimeError) else ""
    if type(error).__name__ == "OutOfMemoryError" or _GPU_MEMORY.search(text):  # torch's, which is not imported here
        return "the GPU"
    return "this machine" if isinstance(error, MemoryError) or _HOST_MEMORY.search(text) else None


@contextmanager
def memory_in_one_line(what: str, remedy: str) -> Iterator[None]:
    """Turn an error that tells of too little memory into one line.

    Args:
        what: needs the memory; begins the message.
        remedy: what to do, its end.

    Raises:
        UserError: in its place.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        owner = short_of_memory(error)
        if owner is None:
            raise
        raise UserError(f"{what} needs more memory than {owner} has; {remedy}") from error


def one_line(message: str) -> str:
    """The telling part of a parser's message: one line, without the value that was given and what else was tried."""
    noise = ("Given value", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>")
    lines = [line.strip(" -") for line in message.strip().splitlines()]
    telling = " ".join(line for line in lines if line and not line.startswith(noise))
    return telling.replace("Does not validate against any of the Union subtypes ", "")


def first_line(error: BaseException) -> str:
    """What a library's error says in its first line; the error's type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
