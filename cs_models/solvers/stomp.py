"""Stagewise orthogonal matching pursuit: every atom above a threshold joins the support at once.

Donoho, Tsaig, Drori and Starck, 2012, with the threshold of the code released with CLOMP, where it is called OMP:
a share of the largest correlation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cs_models.numerics import all_settled
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver, Run
from cs_models.solvers.omp import SupportBasis, signals_together
from cs_models.solvers.sparse_problem import dictionary_problem

ATOMS_TOGETHER = 4


@dataclass(kw_only=True)
class StOMP(IterativeSolver):
    """Stagewise OMP: all atoms that correlate with the residual at least `threshold` times as much as the best.

    The support never exceeds the number of measurements: of too many atoms the strongest are taken.

    Attributes:
        threshold: share of the largest correlation, in (0, 1].
        tolerance: stop a signal where its mean squared residual is below this, or what the noise is expected to be.
        iterations: the most stages.
        released: as in the code released with CLOMP: all signals of an image go on until their common mean squared
            residual is below the tolerance, whatever the noise, and coefficients are not scaled by their atoms' norms.
    """

    threshold: float = 0.7
    tolerance: float = 1e-4
    iterations: int = 200
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.threshold <= 1, "threshold", "a share in (0, 1]")
        self._require(self.tolerance >= 0, "tolerance", "0 or more")
        self._require(self.iterations >= 1, "iterations", "at least 1")

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        return (y, operator) if self.released else super().prepared(y, operator)

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = dictionary_problem(y, operator, "stomp", rescale=not self.released)
        together = signals_together(problem.y, min(problem.m, problem.n))
        groups = problem.y.split(len(problem.y) // problem.images if self.released else together)
        tolerance = self.tolerance if self.released else max(self.tolerance, problem.noise_energy / problem.m)
        with self.run(self.iterations * len(groups)) as run:
            results = [self._pursue(group, problem.atoms, tolerance, run) for group in groups]
        s, iterations, converged = (torch.cat(parts) for parts in zip(*results, strict=True))
        return problem.solution(s, iterations, converged)

    def _pursue(self, y: Tensor, atoms: Tensor, tolerance: float, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        basis = SupportBasis(y, atoms, min(atoms.shape))
        iterations = torch.zeros_like(basis.count)
        active = self._level(y) > tolerance
        for iteration in range(self.iterations):
            if all_settled(active, iteration) or not run.step():
                break
            correlation = (basis.residual @ atoms).abs_().masked_fill_(basis.used | ~active[:, None], 0)
            chosen = correlation > self.threshold * correlation.amax(1, keepdim=True)
            width = int(chosen.sum(1).max())
            values, indices = (correlation * chosen).topk(width, dim=1)
            free = (basis.capacity - basis.count)[:, None]
            wanted = (values > 0) & (torch.arange(width, device=y.device) < free)
            # A few signals take many atoms at once; in parts, the others need not wait for them.
            for part in range(0, width, ATOMS_TOGETHER):
                some = slice(part, part + ATOMS_TOGETHER)
                basis.extend(indices[:, some], wanted[:, some])
            iterations += active
            exhausted = (basis.count == basis.capacity) | (correlation.amax(1) == 0)
            active = active & (self._level(basis.residual) > tolerance) & ~exhausted
            if width == 0:  # nobody found an atom
                break
        return basis.coefficients(), iterations, ~active

    def _level(self, residual: Tensor) -> Tensor:
        """Mean squared residual that decides on each signal ``(P,)``."""
        level = residual.square().mean(1)
        return level.mean().expand_as(level) if self.released else level
