"""Iterative hard thresholding, plain and normalised, for all signals at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cs_models.numerics import all_settled
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver
from cs_models.solvers.sparse_problem import SparseProblem, energy, largest_mask, sparse_problem, sparsity_of
from cs_models.solvers.support import within_noise


@dataclass(kw_only=True)
class IHT(IterativeSolver):
    """Iterative hard thresholding (Blumensath and Davies, 2009): a gradient step, then the K largest coefficients.

    With noise, fewer are kept in the end, see `within_noise`.

    Attributes:
        sparsity: K; None: a fifth of the measurements of a signal, as in the code released with CLOMP.
        step: length of the gradient step, for atoms of unit norm; None: ``1 / |A|^2``, which never diverges.
        tolerance: stop a signal where its mean squared residual is below this.
        iterations: the most iterations.
        released: as in the code released with CLOMP: step 0.1 where none is given, coefficients that are not scaled by
            their atoms' norms, and no regard to the noise.
    """

    sparsity: int | None = None
    step: float | None = None
    tolerance: float = 1e-4
    iterations: int = 200
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.step is None or self.step > 0, "step", "more than 0")
        self._require(self.tolerance >= 0, "tolerance", "0 or more")
        self._require(self.iterations >= 1, "iterations", "at least 1")

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        return (y, operator) if self.released else super().prepared(y, operator)

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = sparse_problem(y, operator, rescale=not self.released)
        count = sparsity_of(self.sparsity, 0.2, problem.m, problem.n)
        step = self.step
        if step is None:
            step = 0.1 if self.released else 1 / problem.squared_norm()
        s, residual = problem.zeros(), problem.y
        active = energy(residual) > self.tolerance * problem.m
        iterations = torch.zeros_like(active, dtype=torch.long)
        with self.run(self.iterations) as run:
            for iteration in range(self.iterations):
                if all_settled(active, iteration) or not run.step():
                    break
                moved = s + step * problem.adjoint(residual)
                s = torch.where(active[:, None], moved * largest_mask(moved, count), s)
                residual = problem.y - problem.forward(s)
                iterations += active
                active = active & (energy(residual) > self.tolerance * problem.m)
        s = s if self.released else within_noise(problem, s)
        return problem.solution(s, iterations, ~active)


@dataclass(kw_only=True)
class NIHT(IterativeSolver):
    """Normalised IHT (Blumensath and Davies, 2010): the step is the best one on the support, shortened until stable.

    With noise, fewer than K are kept in the end, see `within_noise`.

    Attributes:
        sparsity: K; None: a quarter of the measurements of a signal.
        tolerance: stop a signal where the residual is below this share of y, or where an iteration lessens it by
            less than this share of itself.
        iterations: the most iterations.
    """

    sparsity: int | None = None
    tolerance: float = 1e-3
    iterations: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.tolerance >= 0, "tolerance", "0 or more")
        self._require(self.iterations >= 1, "iterations", "at least 1")

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = sparse_problem(y, operator)
        count = sparsity_of(self.sparsity, 0.25, problem.m, problem.n)
        s, residual = problem.zeros(), problem.y
        support = largest_mask(problem.adjoint(residual), count)
        target = energy(problem.y) * self.tolerance**2
        active = energy(problem.y) > target
        iterations = torch.zeros_like(active, dtype=torch.long)
        with self.run(self.iterations) as run:
            for iteration in range(self.iterations):
                if all_settled(active, iteration) or not run.step():
                    break
                moved = self._step(problem, s, problem.adjoint(residual), support, count)
                s = torch.where(active[:, None], moved, s)
                support = s != 0
                before = energy(residual)
                residual = problem.y - problem.forward(s)
                iterations += active
                after = energy(residual)
                active = active & (after > target) & (after < before * (1 - self.tolerance) ** 2)
        return problem.solution(within_noise(problem, s), iterations, ~active)

    @staticmethod
    def _step(problem: SparseProblem, s: Tensor, gradient: Tensor, support: Tensor, count: int) -> Tensor:
        """The next iterate; a step that changes the support is halved until it cannot increase the residual."""
        on_support = gradient * support
        tiny = torch.finfo(gradient.dtype).tiny
        step = energy(on_support) / energy(problem.forward(on_support)).clamp_min(tiny)
        while True:
            moved = s + step[:, None] * gradient
            moved = moved * largest_mask(moved, count)
            change = moved - s
            bound = energy(change) / energy(problem.forward(change)).clamp_min(tiny)
            changed = ((moved != 0) != support).any(1)
            unstable = changed & (step > 0.99 * bound) & (energy(change) > 0)
            if not bool(unstable.any()):
                return moved
            step = torch.where(unstable, step / 2, step)
