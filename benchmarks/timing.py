"""What the speed benchmarks share: fair timing of alternatives, and the speed of plain convolutions to compare with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

FEATURES, DEPTH = 32, 16


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(
    alternatives: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median time of each alternative, after one untimed call of each.

    They take turns, so that a machine that slows down does not favour any.
    """
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for run in range(repeats + 1):
        for name, call in alternatives.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if run > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def convolutions(
    device: torch.device, precision: torch.dtype, pixels: int, backward: bool = False
) -> tuple[Callable[[], object], float]:
    """A stack of plain 32-channel 3x3 convolutions without anything between them, the peak of these networks.

    Args:
        device: where it runs.
        precision: of input and weights.
        pixels: of the input, as a square image.
        backward: with the gradients of input and weights.

    Returns:
        a call, and its floating-point operations.
    """
    side = round(pixels**0.5)
    layers = [nn.Conv2d(FEATURES, FEATURES, 3, padding=1, bias=False) for _ in range(DEPTH)]
    stack = nn.Sequential(*layers).to(device, precision).to(memory_format=torch.channels_last)
    x = torch.randn(1, FEATURES, side, side, device=device, dtype=precision)
    x = x.to(memory_format=torch.channels_last).requires_grad_(backward)
    operations = 2.0 * DEPTH * FEATURES**2 * 9 * side**2

    def forward_only() -> object:
        with torch.no_grad():
            return stack(x)

    def with_gradients() -> object:
        return torch.autograd.grad(stack(x).sum(), [x, *stack.parameters()])

    return (with_gradients, 3 * operations) if backward else (forward_only, operations)
