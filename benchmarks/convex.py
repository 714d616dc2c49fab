"""The convex solvers against the usual ways, in time, peak memory and quality, side by side in one run.

``python benchmarks/convex.py [lasso] [owlqn] [photograph] [tv] [--image FILE] [--size 2048] [--quick]``

* lasso: FISTA and OWL-QN without a matrix against scikit-learn's Lasso on the dense matrix, at a size where that fits,
  and against PyLBFGS, where it is installed, with the same transforms; all four minimise the same F.
* owlqn: the same without the dense matrix at 256x256, from 10 % and from 1 % of the pixels.
* photograph: a tenth of the pixels of a large colour photograph, 50 iterations.
* tv: total variation against CLOMP from the same column-wise measurements.

Every case runs in a process of its own; its peak resident memory includes that of Python and torch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from programs import peak_resident_bytes
from skimage import data
from torch import Tensor

from cs_models.metrics import psnr
from cs_models.operators import ColumnOperator, MeasurementOperator, PixelOperator
from cs_models.reconstruction import Reconstructor
from cs_models.solvers.clomp import CLOMP, WarmCLOMP
from cs_models.solvers.ista import LASSO, WeightedL1
from cs_models.solvers.owlqn import OWLQN
from cs_models.solvers.tv import TotalVariation
from datamodules.images import open_image

Case = Callable[[], tuple[float, Tensor, Tensor]]
"""Gives seconds, estimate and truth."""


def photograph(size: int, file: str | None, colour: bool) -> Tensor:
    """A square photograph ``(1, C, size, size)`` in [0, 1]: a file's, or scikit-image's astronaut, resampled."""
    image = open_image(file) if file else Image.fromarray(data.astronaut())
    pixels = np.array(image.convert("RGB" if colour else "L").resize((size, size), Image.Resampling.LANCZOS))
    channels_last = torch.from_numpy(pixels).reshape(size, size, -1)
    return (channels_last.permute(2, 0, 1)[None] / 255).contiguous()


def solve(solver: Reconstructor, x: Tensor, operator: MeasurementOperator) -> tuple[float, Tensor, Tensor]:
    y = operator(x)
    start = time.perf_counter()
    estimate = solver.reconstruct(y, operator)
    return time.perf_counter() - start, estimate, x


def matrix_free(
    solver: Reconstructor, size: int, file: str | None, colour: bool, ratio: float = 0.1
) -> tuple[float, Tensor, Tensor]:
    return solve(solver, photograph(size, file, colour), PixelOperator((size, size), ratio))


def column_wise(solver: Reconstructor, size: int, file: str | None) -> tuple[float, Tensor, Tensor]:
    return solve(solver, photograph(size, file, colour=False), ColumnOperator.gaussian(0.3, (size, size)))


def dense_lasso(size: int, file: str | None) -> tuple[float, Tensor, Tensor]:
    from sklearn.linear_model import Lasso

    x = photograph(size, file, colour=False)
    operator, count = PixelOperator((size, size), 0.1), size**2
    y, solver = operator(x), LASSO()
    start = time.perf_counter()
    transform = solver.problem(y, operator).transform
    matrix = operator(transform.synthesis(torch.eye(count).view(count, 1, size, size)))[:, 0].T.numpy()
    # scikit-learn minimises |b - A s|^2 / (2 m) + alpha |s|_1.
    model = Lasso(alpha=solver.exact_weight / (2 * len(matrix)), fit_intercept=False, max_iter=100_000, tol=1e-6)
    model.fit(matrix, 255 * y[0, 0].numpy())
    estimate = transform.synthesis(torch.from_numpy(model.coef_).float().view(1, 1, size, size)) / 255
    return time.perf_counter() - start, estimate, x


def pylbfgs(size: int, file: str | None, ratio: float) -> tuple[float, Tensor, Tensor]:
    """The tutorial's solver, with its own 2-D DCT in double precision."""
    from lbfgs import fmin_lbfgs

    x = photograph(size, file, colour=False)
    operator = PixelOperator((size, size), ratio).double()
    y, solver = 255 * operator(x.double()), LASSO()
    transform = solver.problem(y, operator).transform

    def evaluate(s: np.ndarray, gradient: np.ndarray) -> float:
        residual = operator(transform.synthesis(torch.from_numpy(s).view(1, 1, size, size))) - y
        gradient[:] = 2 * transform.analysis(operator.adjoint(residual)).flatten().numpy()
        return residual.square().sum().item()

    start = time.perf_counter()
    s = fmin_lbfgs(evaluate, np.zeros(size**2), orthantwise_c=solver.exact_weight, line_search="wolfe")
    estimate = transform.synthesis(torch.from_numpy(s).view(1, 1, size, size)) / 255
    return time.perf_counter() - start, estimate.float(), x


def measure(case: Case, ratio: float | None) -> tuple[float, float, float, float]:
    """Seconds, peak memory in GB, PSNR in dB, and F of the l1 problem from a share of the pixels (nan without one)."""
    torch.set_num_threads(1)
    elapsed, estimate, x = case()
    peak = peak_resident_bytes() / 1e9
    value = float("nan")
    if ratio is not None:
        operator = PixelOperator((x.shape[-2], x.shape[-1]), ratio)
        value = LASSO().objective(estimate, operator(x), operator).sum().item()
    return elapsed, peak, psnr(estimate.clamp(0, 1), x).item(), value


def compare(title: str, cases: dict[str, Case], ratio: float | None = None) -> None:
    """Print a line for each case; the factors are to the first one. F is for a ratio of pixels, where one is given."""
    print(f"\n{title}\n{'':24s}  seconds   ratio  peak GB   PSNR dB" + ("              F" if ratio else ""))
    context = multiprocessing.get_context("spawn")
    first = None
    for name, case in cases.items():
        with ProcessPoolExecutor(1, context) as pool:
            elapsed, peak, quality, value = pool.submit(measure, case, ratio).result()
        first = first or elapsed
        line = f"{name:24s} {elapsed:8.2f} {first / elapsed:7.1f} {peak:8.2f} {quality:9.2f}"
        print(line + (f" {value:14.1f}" if ratio else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", default=["lasso", "owlqn", "photograph", "tv"])
    parser.add_argument("--image", help="a photograph; scikit-image's astronaut where it is not given")
    parser.add_argument("--size", type=int, default=2048, help="side of the large photograph in pixels")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    arguments = parser.parse_args()
    file = arguments.image
    if "lasso" in arguments.what:
        size = 32 if arguments.quick else 64
        free = partial(matrix_free, size=size, file=file, colour=False)
        cases: dict[str, Case] = {
            "scikit-learn, dense": partial(dense_lasso, size, file),
            "FISTA": partial(free, LASSO(iterations=5000, tolerance=1e-6)),
            "OWL-QN": partial(free, OWLQN(iterations=5000, tolerance=1e-6)),
        }
        if find_spec("lbfgs"):
            cases["PyLBFGS"] = partial(pylbfgs, size, file, 0.1)
        else:
            print("PyLBFGS is left out; to have it: uv pip install PyLBFGS")
        compare(f"LASSO, {size}x{size}, 10 % of the pixels", cases, ratio=0.1)
    if "owlqn" in arguments.what:
        size = 64 if arguments.quick else 256
        for ratio in (0.1, 0.01):
            free = partial(matrix_free, size=size, file=file, colour=False, ratio=ratio)
            cases = {"PyLBFGS": partial(pylbfgs, size, file, ratio)} if find_spec("lbfgs") else {}
            cases["FISTA"] = partial(free, LASSO(iterations=2000, tolerance=1e-5))
            cases["OWL-QN"] = partial(free, OWLQN(iterations=2000, tolerance=1e-5))
            compare(f"LASSO, {size}x{size}, {ratio:.0%} of the pixels", cases, ratio)
    if "photograph" in arguments.what:
        size = 256 if arguments.quick else arguments.size
        free = partial(matrix_free, size=size, file=file, colour=True)
        solvers: dict[str, Reconstructor] = {
            "LASSO": LASSO(iterations=50, tolerance=0),
            "weighted l1": WeightedL1(iterations=50, tolerance=0),
            "OWL-QN": OWLQN(iterations=20, tolerance=0),
            "TV": TotalVariation(iterations=50, tolerance=0),
        }
        cases = {name: partial(free, solver) for name, solver in solvers.items()}
        compare(f"{size}x{size} in colour, 10 % of the pixels; OWL-QN 20 iterations, the others 50", cases)
    if "tv" in arguments.what:
        size = 64 if arguments.quick else 256
        solvers = {"CLOMP": CLOMP(), "warm CLOMP": WarmCLOMP(), "TV": TotalVariation()}
        cases = {name: partial(column_wise, solver, size, file) for name, solver in solvers.items()}
        compare(f"{size}x{size}, column-wise, ratio 0.3", cases)


if __name__ == "__main__":
    main()
