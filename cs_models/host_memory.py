"""How much memory this process may still take, asked before the size that a file states is believed."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cs_models.errors import UserError

# Bytes that are not asked about: importing torch took more than ten times as many. Asking takes half a millisecond.
SMALL = 2**24


def memory_available() -> int | None:
    """Bytes that this process can still allocate on the host, or None where the system does not say.

    On Linux that is what the machine has free, or less where a control group (a container, a batch job) or
    ``ulimit -v`` allows less. On Windows it is the free physical memory, on macOS all of the physical memory.
    """
    if sys.platform == "win32":
        return _windows_available()
    limits = [*_linux_limits(), *_address_space()]
    return min(limits) if limits else _physical()


def check_memory(need: int, what: str) -> None:
    """Refuse what does not fit into memory, before any of it is allocated.

    Args:
        need: bytes that it takes; up to `SMALL` they are taken to be there.
        what: begins the message, as in "image 'a.png' (20000x20000 pixels)".

    Raises:
        UserError: if less than `need` is available; it names both figures.
    """
    available = memory_available() if need > SMALL else None
    if available is not None and need > available:
        raise UserError(f"{what} needs {_gigabytes(need)} of memory; there is {_gigabytes(max(available, 0))}")


def _gigabytes(count: int) -> str:
    tenths = count * 10 // 2**30  # whole numbers, since a hostile size may be beyond any float
    return f"about {tenths // 10}.{tenths % 10} GB" if tenths < 10**7 else "over a million GB"


def _linux_limits() -> Iterator[int]:
    """Free memory of the machine and of every control group that this process is in."""
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            yield from _group_limits(Path("/sys/fs/cgroup"), name, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            yield from _group_limits(root, name, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _group_limits(root: Path, name: str, limit: str, usage: str) -> Iterator[int]:
    """What a control group and those above it leave; pages that only cache files can be taken back."""
    group = root / name.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None:
            cached = (line.split() for line in _lines(folder / "memory.stat"))
            yield most - used + sum(int(words[1]) for words in cached if words[0] == "inactive_file")


def _address_space() -> Iterator[int]:
    """What ``ulimit -v`` leaves of the address space."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    sizes = _lines(Path("/proc/self/statm"))
    if most != resource.RLIM_INFINITY and sizes:
        yield most - int(sizes[0].split()[0]) * resource.getpagesize()


def _physical() -> int | None:
    sysconf = getattr(os, "sysconf", None)  # not on Windows
    try:
        return None if sysconf is None else sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _windows_available() -> int | None:
    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "available", "pages", "free_pages")),
            *((name, ctypes.c_uint64) for name in ("virtual", "free_virtual", "free_extended")),
        )

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll", None)
    if kernel is None or not kernel.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or where it says "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None
