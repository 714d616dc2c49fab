"""What CSNet+ and RK-CCSNet keep in memory for training, plain, with injectors, and wired (IDM paper, Table 6).

For each network, each with the same weights and one loss:

* kept: bytes of the different tensors that the forward pass keeps for the backward pass, weights not counted;
* peak: the largest number of such bytes at any time of the training step, what the backward pass rebuilds included;
* time: of the fastest of some training steps (forward, backward, no optimiser), as time that the cores worked;
* paper: memory in GB that the paper reports without and with invertible wiring. Its sizes fit batches of 64 (CSNet+)
  and 4 (RK-CCSNet) crops of 96x96 and count weights, optimiser and cuDNN's workspace too, so compare the differences.

    python benchmarks/wiring_table6.py                    # one crop of 96x96; memory grows in proportion to the batch
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from idm_memory import MEBIBYTE, SavedTensors

from cs_models.evaluation.results import write_table
from cs_models.networks.learned_sampling.csnet_plus import CSNetPlusConfig, CSNetPlusModule
from cs_models.networks.learned_sampling.network import LearnedSamplingModule
from cs_models.networks.learned_sampling.rk_ccsnet import RKCCSNetConfig, RKCCSNetModule
from cs_models.operators import Sampling
from cs_models.training.options import Training

TRAINING = Training(Sampling(ratios=(0.5,), block_size=32))
NETWORKS: dict[str, tuple[Callable[[bool, bool], LearnedSamplingModule], int, str]] = {
    "CSNet+": (lambda i, w: CSNetPlusModule(CSNetPlusConfig(injectors=i, wired=w), TRAINING), 64, "3.7 -> 2.2"),
    "RK-CCSNet": (lambda i, w: RKCCSNetModule(RKCCSNetConfig(injectors=i, wired=w), TRAINING), 4, "1.3 -> 0.6"),
}
SWITCHES = {
    "plain": (False, False),
    "injectors": (True, False),
    "wired": (False, True),
    "wired, injectors": (True, True),
}


def measure(module: LearnedSamplingModule, x: torch.Tensor, repeats: int) -> tuple[float, float, float]:
    """MiB kept by the forward pass and at the peak of a training step, and the CPU seconds of a step."""

    def loss() -> torch.Tensor:
        operator = module.training_operator((x.shape[-2], x.shape[-1]))
        return module.training_loss(x, operator(x), operator)

    saved = SavedTensors(module.network)
    with saved.counting():
        value = loss()
        kept = saved.bytes
        value.backward()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        loss().backward()
        seconds.append(time.process_time() - start)
    return kept / MEBIBYTE, saved.peak / MEBIBYTE, min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="side of the crops")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for wiring_table6.csv")
    options = parser.parse_args()
    lines: list[list[str]] = []
    torch.set_num_threads(options.threads)
    x = torch.rand(options.batch, 1, options.size, options.size)
    print("| network | | parameters | kept MiB | peak MiB | GB at the paper's batch | paper GB | s/step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (build, batch, paper) in NETWORKS.items():
        first: tuple[float, float, float] | None = None
        for words, (injectors, wired) in SWITCHES.items():
            torch.manual_seed(0)
            module = build(injectors, wired)
            kept, peak, seconds = measure(module, x, options.repeats)
            first = first or (kept, peak, seconds)
            count = sum(parameter.numel() for parameter in module.network.parameters())
            gigabytes = kept * batch / options.batch * MEBIBYTE / 1e9
            print(
                f"| {name} | {words} | {count:,} | {kept:.1f} ({kept / first[0]:.0%}) "
                f"| {peak:.1f} ({peak / first[1]:.0%}) | {gigabytes:.2f} | {paper} "
                f"| {seconds:.2f} (x {seconds / first[2]:.2f}) |",
                flush=True,
            )
            lines.append([name, words, str(count), f"{gigabytes:.3f}", f"{peak:.2f}", f"{seconds:.4g}"])
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        columns = ["network", "switches", "parameters", "kept_gb", "peak_mib", "seconds"]
        write_table(options.out / "wiring_table6.csv", columns, lines)


if __name__ == "__main__":
    main()
