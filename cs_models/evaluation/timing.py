"""How long a reconstruction takes, told by the GPU itself, so that the host need not stand by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cs_models.reconstruction import Solution


class Timed:
    """A reconstruction that was begun; a GPU may still be at work on it.

    Nothing else is at work on the device when it begins, so that its time is that of one reconstruction.

    Attributes:
        solution: the result; on the host once `wait` has returned.
        peak_memory_mb: peak of a GPU's memory in MiB.
    """

    solution: Solution
    peak_memory_mb: float | None = None

    def __init__(self, solve: Callable[[], Solution], device: torch.device) -> None:
        synchronize(device)
        if device.type == "cuda":
            self._on_gpu(solve, device)
            return
        start = time.perf_counter()
        self.solution = solve()
        synchronize(device)
        elapsed = time.perf_counter() - start
        self._seconds = lambda: elapsed

    def _on_gpu(self, solve: Callable[[], Solution], device: torch.device) -> None:
        stream = torch.cuda.current_stream(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.reset_peak_memory_stats(device)
        start.record(stream)
        self.solution = solve()
        end.record(stream)
        self.peak_memory_mb = torch.cuda.max_memory_allocated(device) / 2**20
        self._seconds = lambda: start.elapsed_time(end) / 1000

    def wait(self) -> None:
        """Wait for the end, and bring the result to the host: the next one is to find the GPU's memory free."""
        found = {name: value.cpu() for name, value in vars(self.solution).items() if isinstance(value, Tensor)}
        self.solution = replace(self.solution, **found)

    def seconds(self) -> float:
        """What it took, once `wait` has returned."""
        return self._seconds()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told to."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
