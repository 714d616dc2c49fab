"""`keep_freed_memory`, by what glibc says of its own books.

Page faults, which are what it saves, are not counted by every kernel and sandbox; ``benchmarks/allocator.py`` has the
time.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from cs_models.cli.allocator import keep_freed_memory

PROGRAM = """
import ctypes, os
import torch
from cs_models.cli.allocator import keep_freed_memory

class Books(ctypes.Structure):  # struct mallinfo2 of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]

books = ctypes.CDLL(None).mallinfo2
books.restype = Books

def given_back():
    feature_maps = [torch.ones(12 * 2**18) for _ in range(4)]
    before = books()
    del feature_maps
    after = books()
    return before.arena + before.hblkhd - after.arena - after.hblkhd

if os.fork():
    os.wait()
    keep_freed_memory()
print(given_back(), flush=True)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 or newer"
)
def test_freed_tensors_stay_with_the_process() -> None:
    """Bytes that go back to the operating system when four tensors of 12 MiB are freed."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    usual, kept = map(int, run.stdout.split())
    assert usual > 24 * 2**20
    assert kept == 0


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str | None) -> None:
        pytest.fail("there is no glibc to ask")

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # Windows, macOS, musl
    monkeypatch.setattr(ctypes, "CDLL", load)
    keep_freed_memory()
