"""What the C library does with the memory of freed tensors."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_INT, LARGEST_MMAP_THRESHOLD = 2**31 - 1, 32 * 2**20


def keep_freed_memory(huge_pages: bool = False) -> None:
    """Let glibc keep the memory of freed tensors for the next ones; under another C library nothing changes.

    Left alone, glibc gives the memory of a feature map back to Linux when the map is freed, and every new map starts
    with page faults: up to half the time of a network on CPU (``python benchmarks/allocator.py``). Call it before the
    work starts, once in every process. Tensors above 32 MiB are always given back.

    Args:
        huge_pages: also let torch ask Linux for huge pages, which takes most page faults from those larger tensors;
            it has an effect before torch allocates its first tensor. It costs memory where sizes vary, as in training.
    """
    if huge_pages:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        c_library.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
