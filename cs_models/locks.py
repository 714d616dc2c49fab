"""One program at a time writes into a folder, with as many processes as it has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from cs_models.errors import UserError

# Name of the file that is locked; it stays, empty, in the folder.
LOCK = ".lock"


@contextmanager
def holding(folder: Path, program: str, first: bool = True) -> Iterator[None]:
    """Hold a folder; the lock goes with the processes of the program, with the last of them, however they end.

    Args:
        folder: made where it is missing.
        program: what writes there, for the error: "evaluation" or "training".
        first: of the processes of a program the first one, which must be alone, takes the lock and shares it with the
            others, which ask for their part after it has met them.

    Raises:
        UserError: if another program holds it, or it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror}") from error
    try:
        try:
            held = (not first or lock_descriptor(descriptor, blocking=False)) and _share(descriptor)
        except OSError as error:  # a file system without locks
            raise UserError(f"cannot lock the folder {folder}: {error.strerror}; choose another one") from error
        if not held:
            raise UserError(f"another {program} is writing to {folder}; wait for it or choose another folder")
        yield
    finally:
        os.close(descriptor)


def _share(descriptor: int) -> bool:
    """Turn a lock of one process into one that several may hold, or take a part of such a one.

    Windows has none that could be turned so; there the first process holds it alone.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
