"""Speed of the greedy solvers and of CLOMP against the usual forms, both timed in one run on the same problem.

``python benchmarks/sparse.py [omp] [stomp] [clomp] [--quick]``

* omp: against scikit-learn's ``orthogonal_mp_gram``, with the share of identical supports.
* stomp: against the plain form, a pseudo-inverse for every signal in every stage, until the mean squared residual of
  all signals is small. That form is timed on every eighth signal and its time multiplied by eight.
* clomp: an epoch against the plain form: autograd, a dense DCT matrix, unfold and std.

Times are CPU seconds of this process, which other programs on the machine disturb least; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from skimage import data
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from cs_models.operators import ColumnOperator
from cs_models.solvers.clomp import CLOMP
from cs_models.solvers.omp import OMP
from cs_models.solvers.sparse_problem import dictionary_problem
from cs_models.solvers.stomp import StOMP
from cs_models.transforms.dct import dct, dct_matrix
from datamodules.signals import synthetic_signals


def seconds(function: Callable[..., object], *arguments: object, repeats: int = 3, warm_up: bool = True) -> float:
    """Least CPU time of some calls ``function(*arguments)``."""
    if warm_up:
        function(*arguments)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function(*arguments)
        times.append(time.process_time() - start)
    return min(times)


def report(what: str, usual: float, ours: float, note: str = "") -> None:
    print(f"{what:34s} usual {usual:8.3f} s   ours {ours:8.3f} s   ratio {usual / ours:6.1f}   {note}", flush=True)


def photograph(size: int) -> Tensor:
    """The photograph that scikit-image carries, ``(1, 1, size, size)`` in [0, 1], by taking every so many pixels."""
    step = 512 // size
    return torch.tensor(data.camera()[::step, ::step]).float()[None, None] / 255


def omp(quick: bool) -> None:
    n, m, signals = (256, 64, 50) if quick else (1000, 250, 200)
    for share in (0.2, 0.8):
        k = int(share * m)
        operator = ColumnOperator.gaussian(m / n, (n, signals))
        x = torch.randn(1, 1, n, signals, generator=torch.Generator().manual_seed(0)).cumsum(2) / n**0.5
        y = operator(x)
        problem = dictionary_problem(y, operator, "omp")
        atoms, measured = problem.atoms.double().numpy(), problem.y.double().T.numpy()
        gram, products = atoms.T @ atoms, atoms.T @ measured
        solver = OMP(sparsity=k, tolerance=0)
        found = dct(solver.reconstruct(y, operator)[0, 0].T).abs() > 1e-5
        expected = torch.from_numpy(orthogonal_mp_gram(gram, products, n_nonzero_coefs=k).T != 0)
        double = OMP(sparsity=k, tolerance=0).reconstruct(y.double(), operator.double())
        found_double = dct(double[0, 0].T).abs() > 1e-9
        operator.float()
        usual = seconds(partial(orthogonal_mp_gram, n_nonzero_coefs=k), gram, products, repeats=1)
        same, same_double = ((f == expected).all(1).float().mean() for f in (found, found_double))
        note = f"same support: fp32 {same:.1%}, fp64 {same_double:.1%}"
        report(f"OMP n={n} m={m} K={k} N={signals}", usual, seconds(solver.solve, y, operator), note)


def stomp(quick: bool) -> None:
    signals = torch.from_numpy(synthetic_signals(40 if quick else 200, 200 if quick else 1000)).T[None, None]
    images = [(photograph(128), 0.3)] if quick else [(photograph(size), r) for size in (256, 512) for r in (0.3, 0.5)]
    for x, ratio in [*images, (signals, 0.25)]:
        n, width = x.shape[-2:]
        operator = ColumnOperator.gaussian(ratio, (n, width))
        y = operator(x)
        problem = dictionary_problem(y, operator, "stomp")
        solver = StOMP(released=True)
        usual = 8 * seconds(_plain_stomp, problem.y[::8], problem.atoms, solver, repeats=1, warm_up=False)
        report(f"StOMP n={n} N={width} Sr={ratio}", usual, seconds(solver.solve, y, operator))


def _plain_stomp(y: Tensor, atoms: Tensor, solver: StOMP) -> None:
    support = torch.zeros(len(y), atoms.shape[1], dtype=torch.bool)
    residual = y.clone()
    for _ in range(solver.iterations):
        strength = (residual @ atoms).abs()
        support |= strength > solver.threshold * strength.amax(1, keepdim=True) + 1e-6
        for index, signal in enumerate(y):
            chosen = atoms[:, support[index]]
            residual[index] = signal - chosen @ (torch.linalg.pinv(chosen) @ signal)
        if residual.square().mean() < solver.tolerance:
            break


def clomp(quick: bool) -> None:
    epochs = 20
    for size in (64,) if quick else (256, 512):
        operator = ColumnOperator.gaussian(0.3, (size, size))
        y = operator(photograph(size))
        solver = CLOMP(recipe="released", epochs=epochs)
        report(
            f"CLOMP epoch {size}x{size}",
            seconds(_plain_clomp, y, operator, epochs) / epochs,
            seconds(solver.solve, y, operator) / epochs,
        )


def _plain_clomp(y: Tensor, operator: ColumnOperator, epochs: int) -> None:
    problem = dictionary_problem(y, operator, "clomp")
    target, atoms, synthesis = problem.y, problem.atoms, dct_matrix(problem.n)
    s = torch.nn.Parameter(torch.empty(len(target), problem.n).uniform_(-0.1, 0.1))
    optimizer = torch.optim.Adam([s], lr=2.0)
    residual, mask = target, torch.zeros(len(target), problem.n, dtype=torch.bool)
    for _ in range(epochs):
        strength = (residual @ atoms).abs()
        mask |= strength / (strength.amax(1, keepdim=True) + 1e-6) > 0.7
        estimate = (s * mask) @ atoms.T
        residual = (target - estimate).detach()
        image = s @ synthesis
        variation = image.diff(dim=0).square().mean() + image.diff(dim=1).square().mean()
        local = F.unfold(image[None, None], 3, stride=2).std(dim=1).mean()
        loss = F.mse_loss(estimate, target) + 0.2 * variation + 0.1 * local
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


PARTS = {"omp": omp, "stomp": stomp, "clomp": clomp}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help="omp, stomp, clomp; all of them where none is named")
    parser.add_argument("--quick", action="store_true", help="small problems")
    arguments = parser.parse_args()
    for part in arguments.parts or PARTS:
        PARTS[part](arguments.quick)


if __name__ == "__main__":
    main()
