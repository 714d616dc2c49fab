"""Subspace pursuit and CoSaMP: keep K atoms, add candidates, fit, prune back to K; for all signals at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cs_models.numerics import all_settled
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver
from cs_models.solvers.sparse_problem import SparseProblem, energy, largest_mask, sparse_problem, sparsity_of


@dataclass(kw_only=True)
class SubspacePursuit(IterativeSolver):
    """Subspace pursuit (Dai and Milenkovic, 2009): K candidates per iteration, and a second fit after pruning.

    Attributes:
        sparsity: K; None: a quarter of the measurements of a signal.
        tolerance: stop a signal where the residual is below this share of y. It also stops where the residual no
            longer falls, with the best support so far.
        iterations: the most iterations.
        fit_iterations: the most conjugate gradient steps of a least-squares fit on a support.
    """

    sparsity: int | None = None
    tolerance: float = 1e-3
    iterations: int = 50
    fit_iterations: int = 50

    share: ClassVar[float] = 0.25
    candidates: ClassVar[int] = 1
    refit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.tolerance >= 0, "tolerance", "0 or more")
        self._require(self.iterations >= 1, "iterations", "at least 1")
        self._require(self.fit_iterations >= 1, "fit_iterations", "at least 1")

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = sparse_problem(y, operator)
        count = sparsity_of(self.sparsity, self.share, problem.m, problem.n)
        candidates = min(self.candidates * count, problem.n)
        best, residual = problem.zeros(), problem.y
        target = energy(problem.y) * self.tolerance**2
        active = energy(problem.y) > target
        converged = ~active
        iterations = torch.zeros_like(active, dtype=torch.long)
        with self.run(self.iterations) as run:
            for iteration in range(self.iterations):
                if all_settled(active, iteration) or not run.step():
                    break
                merged = largest_mask(problem.adjoint(residual), candidates) | (best != 0)
                s = fit_on_support(problem, merged, best, self.fit_iterations)
                support = largest_mask(s, count)
                s = fit_on_support(problem, support, s, self.fit_iterations) if self.refit else s * support
                remainder = problem.y - problem.forward(s)
                better = active & (energy(remainder) < energy(residual))
                best = torch.where(better[:, None], s, best)
                residual = torch.where(better[:, None], remainder, residual)
                iterations += active
                active = better & (energy(residual) > target)
        return problem.solution(best, iterations, converged | ~active)


@dataclass(kw_only=True)
class CoSaMP(SubspacePursuit):
    """Compressive sampling matching pursuit (Needell and Tropp, 2009): 2K candidates, one fit per iteration.

    Attributes: as those of `SubspacePursuit`, with K a sixth of the measurements where it is None.
    """

    share: ClassVar[float] = 1 / 6
    candidates: ClassVar[int] = 2
    refit: ClassVar[bool] = False


def fit_on_support(
    problem: SparseProblem, support: Tensor, start: Tensor, iterations: int, tolerance: float = 1e-5
) -> Tensor:
    """Least squares ``min |A s - y|`` over s that vanish outside the support, by conjugate gradients (CGLS).

    It needs no matrix, and dependent atoms do it no harm.

    Args:
        problem: y and A.
        support: ``(P, n)``, boolean.
        start: first estimate ``(P, n)``.
        iterations: the most steps.
        tolerance: stop where the gradient has fallen to this share of its first value.
    """
    s = start * support
    residual = problem.y - problem.forward(s)
    gradient = problem.adjoint(residual) * support
    direction, size = gradient, energy(gradient)
    target = energy(problem.adjoint(problem.y) * support) * tolerance**2
    tiny = torch.finfo(s.dtype).tiny
    for iteration in range(iterations):
        active = size > target
        if all_settled(active, iteration):
            break
        measured = problem.forward(direction)
        length = torch.where(active, size / energy(measured).clamp_min(tiny), 0)[:, None]
        s = s + length * direction
        residual = residual - length * measured
        gradient = problem.adjoint(residual) * support
        previous, size = size, torch.where(active, energy(gradient), size)
        direction = gradient + (size / previous.clamp_min(tiny))[:, None] * direction
    return s
