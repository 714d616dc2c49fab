"""What holds while a program is being imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130


@contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C end the process with one line and status 130, as long as nothing but imports goes on inside.

    An exception would not do: libraries turn one that comes in the middle of their import into others, or lose it. No
    file is open yet that could be left half written.

    Nor is garbage looked for: imports make hardly any, and searching all that torch and Lightning define, again and
    again as it grows, takes a tenth of their import and more.
    """
    collecting, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        with _ending_at_once():
            yield
    finally:
        if collecting:
            # Where nothing was imported, there is no reason to count what is frozen, which takes a while.
            if len(sys.modules) > known and not gc.get_freeze_count():  # else what another has frozen would thaw
                gc.freeze()
                gc.unfreeze()  # both together make all of it old, which the next searches pass over
            gc.enable()


@contextmanager
def _ending_at_once() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
