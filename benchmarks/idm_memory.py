"""What IDM's training keeps in memory and how long a step takes, against the number of steps T.

Four networks with the same parameters and results: plain autograd, the steps wired invertibly (level 1), the
U-Net's blocks wired (level 2), and both. A fifth one, not_wired, has neither pairs nor couplings, so it keeps less than
the wiring does under plain autograd. For each of them and each T:

* kept: bytes of the different tensors that the forward pass keeps for the backward pass, weights not counted;
* peak: the largest number of such bytes at any time of the training step, what the backward pass rebuilds included;
* memory: on CUDA the peak of allocated memory, on the CPU the peak of the resident set, above what the process had
  with weights and gradients in place;
* time: of the fastest of some training steps (forward, backward, no optimiser); on the CPU the time that its
  cores worked for the process;
* with --budget GB the largest batch: so many images that memory (on the CPU: the peak of autograd's bytes) stays below,
  from what a second batch adds to the first.

    python benchmarks/idm_memory.py                               # a small U-Net, a minute or two
    python benchmarks/idm_memory.py --full --size 256 --batch 8 --device cuda --precision bf16 --steps 1,2,3,6,12
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from programs import peak_resident_bytes
from torch import Tensor, nn

from cs_models.evaluation.results import to_text, write_table
from cs_models.networks.diffusion.idm import IDM, IDMConfig
from cs_models.operators import make_operator

NAMES = {"not_wired": "not wired", "none": "plain", "steps": "level 1", "blocks": "level 2", "both": "both"}
COLUMNS = ("network", "steps", "kept_mib", "peak_mib", "memory_mib", "seconds", "largest_batch")
SMALL_UNET = {
    "block_out_channels": (64, 128, 256, 256),
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "cross_attention_dim": 16,
}
TINY_UNET = {
    "block_out_channels": (16, 16, 16, 16),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "layers_per_block": 1,
}
MEBIBYTE = 2**20
NAN = float("nan")


class SavedTensors:
    """Counts the storages that autograd holds for backward passes, each once however many tensors share it."""

    def __init__(self, ignored: nn.Module) -> None:
        self.ignored = {parameter.untyped_storage().data_ptr() for parameter in ignored.parameters()}
        self.holders: dict[int, int] = {}
        self.bytes = self.peak = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Held(tensor, self), lambda held: held.tensor):
            yield

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.ignored:
            return
        holders = self.holders.get(storage.data_ptr(), 0)
        self.holders[storage.data_ptr()] = holders + 1
        if holders == 0:
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)

    def remove(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.ignored:
            return
        self.holders[storage.data_ptr()] -= 1
        if self.holders[storage.data_ptr()] == 0:
            self.bytes -= storage.nbytes()


class _Held:
    """A tensor in autograd's hands; it is counted until autograd lets it go."""

    def __init__(self, tensor: Tensor, counter: SavedTensors) -> None:
        self.tensor, self.counter = tensor.detach(), counter
        counter.add(self.tensor)

    def __del__(self) -> None:
        self.counter.remove(self.tensor)


class Task:
    """A training step of an IDM on one batch; with the wiring, every network of the comparison has the same weights."""

    def __init__(self, steps: int, options: argparse.Namespace, wired: bool = True, batches: int = 1) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(options.threads)
        self.device = torch.device(options.device)
        self.precision = options.precision
        unet = {} if options.full else TINY_UNET if options.tiny else SMALL_UNET
        self.network = IDM(IDMConfig(steps, options.channels, unet, wired=wired)).to(self.device)
        self.operator = make_operator("structured:32", 0.1, (options.size, options.size)).to(self.device)
        shape = (batches * options.batch, options.channels, options.size, options.size)
        self.x = torch.rand(shape, device=self.device)
        self.y = self.operator(self.x)
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def choose(self, mode: str) -> None:
        """Which of the networks it is from now on; all of the wiring, or only the one without it."""
        if self.network.config.wired:
            self.network.set_invertible(mode)  # type: ignore[arg-type]

    def loss(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return (self.network(self.y, self.operator).float() - self.x).abs().mean()

    def step(self) -> None:
        self.loss().backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory(self) -> float:
        """Largest number of bytes in use so far: allocated on CUDA, the resident set on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return peak_resident_bytes()


def measure_memory(mode: str, steps: int, options: argparse.Namespace, batches: int = 1) -> tuple[float, float, float]:
    """MiB kept, at the peak of autograd's bytes, and at the process's peak. For a process of its own.

    Not a number where a GPU has less.
    """
    try:
        return _measure_memory(mode, steps, options, batches)
    except torch.OutOfMemoryError:
        return NAN, NAN, NAN


def _measure_memory(mode: str, steps: int, options: argparse.Namespace, batches: int) -> tuple[float, float, float]:
    task = Task(steps, options, mode != "not_wired", batches)
    task.choose(mode)
    before = task.memory()
    task.step()
    memory = task.memory() - before
    saved = SavedTensors(task.network)
    with saved.counting():
        loss = task.loss()
        kept = saved.bytes
        loss.backward()
    return kept / MEBIBYTE, saved.peak / MEBIBYTE, memory / MEBIBYTE


def measure_seconds(modes: list[str], steps: int, options: argparse.Namespace) -> dict[str, float]:
    """Fastest training step of each network; they take turns, so that what else the machine does hits all alike."""
    tasks = {wired: Task(steps, options, wired) for wired in {mode != "not_wired" for mode in modes}}
    clock = time.perf_counter if options.device.startswith("cuda") else time.process_time
    fastest = dict.fromkeys(modes, float("inf"))
    for _ in range(options.repeats):
        for mode in modes:
            task = tasks[mode != "not_wired"]
            task.choose(mode)
            start = clock()
            try:
                task.step()
            except torch.OutOfMemoryError:
                fastest[mode] = NAN
                continue
            fastest[mode] = min(fastest[mode], clock() - start)
    return fastest


def largest_batch(one: float, two: float, options: argparse.Namespace) -> float:
    """How many images fit into the budget, from the MiB of one and of two batches."""
    image = (two - one) / options.batch
    return float((options.budget * 1e9 / MEBIBYTE - (one - image * options.batch)) // image)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: these words, or those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="1,12", help="values of T, with commas")
    parser.add_argument("--modes", default="none,steps,blocks,both", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--full", action="store_true", help="Stable Diffusion's U-Net in place of the small one")
    parser.add_argument("--tiny", action="store_true", help="a tiny U-Net, to try the program")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=1, help="3 for colour")
    parser.add_argument("--budget", type=float, help="GB of memory that the largest batch has to fit into")
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for idm_memory.csv")
    parser.add_argument("--figure", help="PNG file to draw: memory and time against T")
    return parser.parse_args(words)


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function gives in a process of its own, where the peak of the resident set begins anew."""
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":  # elsewhere the processes do not import everything anew
        context.set_forkserver_preload(["cs_models.networks.diffusion.idm", "cs_models.operators"])
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    options = parsed()
    modes, steps = options.modes.split(","), sorted(int(value) for value in options.steps.split(","))
    peaks: dict[tuple[str, int], float] = {}
    times: dict[tuple[str, int], float] = {}
    lines: list[list[object]] = []
    first = NAMES[modes[0]]
    print(f"{'network':9} {'T':>3} {'kept MiB':>9} {'peak MiB':>9} {'memory MiB':>11} {'s/step':>7}  against {first}")
    for t in steps:
        seconds = in_new_process(measure_seconds, modes, t, options)
        for mode in modes:
            times[mode, t] = seconds[mode]
            kept, peaks[mode, t], memory = in_new_process(measure_memory, mode, t, options)
            print(
                f"{NAMES[mode]:9} {t:3} {kept:9.2f} {peaks[mode, t]:9.2f} {memory:11.0f} {seconds[mode]:7.2f}  "
                f"peak {peaks[mode, t] / peaks[modes[0], t]:6.1%}, time x {seconds[mode] / seconds[modes[0]]:.2f}",
                flush=True,
            )
            largest: object = ""
            if options.budget is not None:
                _, *more = in_new_process(measure_memory, mode, t, options, 2)
                counts = 1 if options.device.startswith("cuda") else 0  # allocated memory, or autograd's bytes
                largest = largest_batch((peaks[mode, t], memory)[counts], more[counts], options)
            lines.append([NAMES[mode], t, kept, peaks[mode, t], memory, seconds[mode], largest])
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / "idm_memory.csv", COLUMNS, [list(map(to_text, line)) for line in lines])
    for mode in modes:
        growth = peaks[mode, steps[-1]] / peaks[mode, steps[0]]
        print(f"{NAMES[mode]}: from T = {steps[0]} to T = {steps[-1]} the peak grows x {growth:.2f}")
    if options.figure is not None:
        draw(options.figure, modes, steps, peaks, times)


def draw(
    path: str,
    modes: list[str],
    steps: list[int],
    peaks: dict[tuple[str, int], float],
    times: dict[tuple[str, int], float],
) -> None:
    """Peak of autograd's bytes and time of a step against T, a line for each network."""
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, values, title in ((memory, peaks, "MiB for the backward pass"), (seconds, times, "seconds per step")):
        for mode in modes:
            axis.plot(steps, [values[mode, t] for t in steps], marker="o", label=NAMES[mode])
        axis.set(xlabel="steps T", title=title)
    memory.set_yscale("log")
    figure.legend(*memory.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
