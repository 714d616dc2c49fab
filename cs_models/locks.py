"""One program at a time writes into a folder, with as many processes as it has.

Every process holds a file of its own: the first one ``.lock``, the others ``.lock-1``, ``.lock-2`` and so on. A program
starts where nobody holds any of them, so that it waits for all processes of another one, also where the first of them
was killed. Locks are exclusive and go with their process, however it ends, on every system; none is handed on, which
Windows could not do.

Two things are left to what processes of one program do together. A process asks for its file after it has met the
others, and meets them once more before it writes: if the first one is killed between the two, that meeting fails. And a
file system that does not share locks between machines, as some network ones, tells two machines nothing of each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from filelock import lock_descriptor

from cs_models.errors import UserError

# Name of the file that the first process locks, and beginning of those of the others; they stay, empty, in the folder.
LOCK = ".lock"


@contextmanager
def holding(folder: Path, program: str, first: bool = True) -> Iterator[None]:
    """Hold a folder; the lock goes with the processes of the program, with the last of them, however they end.

    Args:
        folder: made where it is missing.
        program: what writes there, for the error: "evaluation" or "training".
        first: of the processes of a program the first one, which must be alone; the others ask after it has met them.

    Raises:
        UserError: if another program holds it, or it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error
    descriptor = _locked(folder / LOCK) if first else _first_free(folder)
    try:
        if descriptor is None or (first and _others_at_work(folder)):
            raise UserError(f"another {program} is writing to {folder}; wait for it or choose another folder")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_lock(name: str) -> bool:
    """Whether a file of this name is one of those that `holding` leaves."""
    return name == LOCK or name.startswith(f"{LOCK}-")


def _locked(file: Path) -> int | None:
    """The descriptor of a file that is locked from now on until it is closed; None where another process holds it.

    Raises:
        UserError: if the file cannot be made or locked.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _not_written(file.parent, error) from error
    try:
        if lock_descriptor(descriptor, blocking=False):
            return descriptor
    except OSError as error:  # a file system without locks
        os.close(descriptor)
        raise UserError(f"cannot lock the folder {file.parent}: {error.strerror}; choose another one") from error
    os.close(descriptor)
    return None


def _first_free(folder: Path) -> int:
    """The descriptor of the first file of the other processes that nobody holds."""
    descriptors = (_locked(folder / f"{LOCK}-{number}") for number in count(1))
    return next(descriptor for descriptor in descriptors if descriptor is not None)


def _others_at_work(folder: Path) -> bool:
    """Whether other processes of a program are still there whose first one is gone."""
    for file in folder.glob(f"{LOCK}-*"):
        descriptor = _locked(file)
        if descriptor is None:
            return True
        os.close(descriptor)
    return False


def _not_written(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to the folder {folder}: {error.strerror}")
