"""What an evaluation does for each image besides reconstructing it, which a GPU need not wait for.

``python benchmarks/host_work.py --dataset bundled --ratio 0.1``. While a GPU is at work on an image the next one is
read and the last one scored, so an evaluation takes the longer of both instead of their sum; the last column says how
much less time that is for a GPU that takes 5, 20 or 100 ms for an image.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from cs_models.cli.evaluate import parse
from cs_models.errors import UserError
from cs_models.evaluation.loop import _Worker
from cs_models.evaluation.plan import Plan
from cs_models.evaluation.processes import OneProcess
from cs_models.evaluation.results import ResultsFile, only_writer
from cs_models.progress import Progress

GPU_MILLISECONDS = (5, 20, 100)


def host_work(words: list[str]) -> list[tuple[float, ...]]:
    """Of each image the milliseconds of reading, of measuring and reconstructing, and of scoring."""
    options = parse(words)
    assert options is not None
    plan, lines = Plan(options), []
    with only_writer(options.output.out):
        ResultsFile(options.output.out).repair()
        worker = _Worker(plan, OneProcess(torch.device("cpu")))
        before = time.perf_counter()
        for batch in worker._batches(plan.cases[0], Progress(None, hidden=True)):
            read = time.perf_counter()
            begun = worker._begin(plan.cases[0], batch)
            reconstructed = time.perf_counter()
            for row in worker._rows(begun):
                worker.table.append(row)
            scored = time.perf_counter()
            lines.append(tuple(1000 * span for span in (read - before, reconstructed - read, scored - reconstructed)))
            before = time.perf_counter()
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="bundled")
    parser.add_argument("--data_dir")
    parser.add_argument("--ratio", default="0.1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--methods", "backprojection", "--datasets", options.dataset, "--ratios", options.ratio]
        words += ["--out", str(Path(folder) / "out"), "--device", "cpu"]
        words += [] if options.data_dir is None else ["--data_dir", options.data_dir]
        try:
            lines = host_work(words)[1:]  # the first pays for imports
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    read, reconstructed, scored = (statistics.median(column) for column in zip(*lines, strict=True))
    print(f"{len(lines)} images: reading {read:.1f} ms, scoring and writing {scored:.1f} ms")
    print(f"(back-projecting on the CPU {reconstructed:.1f} ms)")
    for gpu in GPU_MILLISECONDS:
        apart, together = gpu + read + scored, max(gpu, read + scored)
        print(f"a GPU of {gpu:3d} ms an image: {apart:.1f} ms one after the other, {together:.1f} ms together")
    return 0


if __name__ == "__main__":
    sys.exit(main())
