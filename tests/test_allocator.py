"""`keep_freed_memory`, counted in page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from cs_models.allocator import keep_freed_memory
if {kept}:
    keep_freed_memory()
def maps():  # as a network does it: a few feature maps at a time, of other sizes than the ones before
    for megabytes in (4, 12, 4, 12):
        held = [torch.ones(megabytes * 2**18) for _ in range(4)]
        del held
maps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    maps()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kept: bool) -> int:
    run = subprocess.run([sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's malloc")
def test_freed_tensors_are_used_again_without_page_faults() -> None:
    assert 5 * page_faults(kept=True) < page_faults(kept=False)
