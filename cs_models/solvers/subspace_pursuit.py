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
from cs_models.solvers.sparse_problem import energy, largest_mask, sparse_problem, sparsity_of
from cs_models.solvers.support import fit_on_support, within_noise


@dataclass(kw_only=True)
class SubspacePursuit(IterativeSolver):
    """Subspace pursuit (Dai and Milenkovic, 2009): K candidates per iteration, and a second fit after pruning.

    With noise, fewer than K are kept in the end, see `within_noise`.

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
        best = within_noise(problem, best, self.fit_iterations)
        return problem.solution(best, iterations, converged | ~active)


@dataclass(kw_only=True)
class CoSaMP(SubspacePursuit):
    """Compressive sampling matching pursuit (Needell and Tropp, 2009): 2K candidates, one fit per iteration.

    Attributes: as those of `SubspacePursuit`, with K a sixth of the measurements where it is None.
    """

    share: ClassVar[float] = 1 / 6
    candidates: ClassVar[int] = 2
    refit: ClassVar[bool] = False
