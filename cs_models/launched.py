"""What a process must know that may be one of several of a run, before they meet and however they end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cs_models.errors import LostProcessError, report

# What torchrun, SLURM, LSF, MPI and `fabric run` leave in the environment of the processes that they start.
# Settings of MPI, as OMPI_ALLOW_RUN_AS_ROOT and OMPI_MCA_*, are no such thing: images of containers set them for all.
LAUNCHED_NAMES = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_SIZE",
}  # fmt: skip
LAUNCHED_PREFIXES = ("TORCHELASTIC_", "SLURM_", "LSB_", "JSM_", "LT_")
# What the first process leaves in that of the ones that Lightning starts for it, which run the same command.
FIRST = "CS_MODELS_FIRST_PROCESS"
SECONDS_BETWEEN_LOOKS = 1.0
TERMINATED = 128 + signal.SIGTERM  # exit status of a training that SIGTERM ended


def launched() -> bool:
    """Whether a program that starts several processes may have started this one."""
    return any(name in LAUNCHED_NAMES or name.startswith(LAUNCHED_PREFIXES) for name in os.environ)


def local_rank() -> int:
    """Number of this process among those of its machine, which is that of its GPU; 0 where it is alone."""
    ranks = (os.environ.get(name, "") for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"))
    return next((int(rank) for rank in ranks if rank.isdecimal()), 0)


@contextmanager
def ending_together() -> Iterator[None]:
    """Let the processes that Lightning starts for this one end with it, and this one with the first if it is such one.

    Lightning ends all if one of those dies that it started. Of the first it takes no notice: the others would wait for
    it in a collective, for as long as that may take. Processes of torchrun or SLURM are theirs to end. Windows does not
    tell whether a parent is gone.
    """
    first = os.environ.get(FIRST)
    if sys.platform == "win32" or (launched() and first is None):
        yield
    elif first is not None and launched():
        over = threading.Event()
        threading.Thread(target=_end_after, args=(int(first), os.getppid(), over), daemon=True).start()
        try:
            yield
        finally:
            over.set()
    else:
        os.environ[FIRST] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[FIRST]


def _end_after(first: int, parent: int, over: threading.Event) -> None:
    """End this process, whatever it is doing, once the first one is gone, unless the work is over before."""
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        if os.getppid() != parent or not _exists(first):
            report(LostProcessError("the first process of this run ended: killed, out of memory, or by an error"))
            os._exit(2)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
