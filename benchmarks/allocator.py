"""What keeping freed memory is worth on CPU: `keep_freed_memory`, which eval.py and train.py call, against plain glibc.

``python benchmarks/allocator.py r_coast ista_net_pp`` reconstructs an image by each network of the zoo in eager float32
in NCHW order and in bfloat16 in channels_last, with both. Each run is a process of its own, in turns; a line gives the
median over the processes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from programs import run_program

from cs_models.cli.allocator import keep_freed_memory
from cs_models.errors import UserError

COLUMNS = ("network", "alternative", "malloc", "milliseconds", "times faster")
CASES = [(precision, malloc) for precision in ("fp32 NCHW", "bf16") for malloc in ("glibc", "kept")]


def milliseconds(network: str, size: int, precision: str, malloc: str, repeats: int) -> float:
    """Median time of a reconstruction in this process."""
    if malloc == "kept":
        keep_freed_memory(huge_pages=True)
    import torch
    from timing import median_seconds

    from cs_models import load

    module = load(network, 0.1)
    fast = precision == "bf16"
    module.network.to(memory_format=torch.channels_last if fast else torch.contiguous_format)
    operator = module.default_operator(0.1, (size, size))
    y = operator(torch.rand(1, 1, size, size))

    def reconstruct() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            return module.reconstruct(y, operator)

    return 1e3 * median_seconds({"": reconstruct}, repeats, torch.device("cpu"))[""]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", help="names of the zoo, or checkpoint files")
    parser.add_argument("--size", type=int, default=256, help="side of the image")
    parser.add_argument("--processes", type=int, default=3, help="processes for each line")
    parser.add_argument("--repeats", type=int, default=5, help="reconstructions in each process")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # what the processes are started with
    options = parser.parse_args()
    try:
        if options.case:
            precision, malloc = options.case
            print(milliseconds(options.networks[0], options.size, precision, malloc, options.repeats))
            return 0
        print("".join(f"{column:>16}" for column in COLUMNS))
        for network in options.networks:
            times = defaultdict(list)
            for _ in range(options.processes):
                for case in CASES:
                    words = [network, "--size", str(options.size), "--repeats", str(options.repeats), "--case", *case]
                    times[case].append(float(run_program([__file__, *words])))
            first = statistics.median(times[CASES[0]])
            for case in CASES:
                time = statistics.median(times[case])
                print(
                    "".join(f"{cell:>16}" for cell in (Path(network).stem, *case, f"{time:.1f}", f"{first / time:.2f}"))
                )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
