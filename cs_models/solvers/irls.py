"""Iteratively reweighted least squares, for all signals at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cs_models.numerics import conjugate_gradients, relative
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver
from cs_models.solvers.sparse_problem import DictionaryProblem, SparseProblem, energy, sparse_problem

# Numbers of the stack of weighted atoms that is worked on at once: 256 MiB in float64.
LARGEST_STACK = 2**25
# Steps of conjugate gradients where there is no matrix, and the residual that ends them.
INNER_STEPS, INNER_TOLERANCE = 50, 1e-5


@dataclass(kw_only=True)
class IRLS(IterativeSolver):
    """Seeks the coefficients of least ``sum |s_i|^p`` with ``A s = y`` (Chartrand and Yin, 2008).

    Every iteration has a closed form, ``s = Q A^T (A Q A^T)^-1 y`` with ``Q = diag((s_i^2 + e)^(1 - p / 2))``. The
    smoothing e starts at the square of the largest coefficient and falls to a tenth whenever s changes, as a share of
    its norm, by less than a hundredth of e's root.

    Attributes:
        p: 1 for the l1 norm; less demands more sparsity.
        damping: added to the diagonal of ``A Q A^T``, as a share of its mean.
        tolerance: a signal is done once e's root is at this share of its largest coefficient and s has settled.
        iterations: the most iterations.
    """

    p: float = 1.0
    damping: float = 1e-6
    tolerance: float = 1e-3
    iterations: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.p <= 1, "p", "0 to 1")
        self._require(0 < self.damping <= 1, "damping", "more than 0, at most 1")
        self._require(0 < self.tolerance <= 1, "tolerance", "more than 0, at most 1")
        self._require(self.iterations >= 1, "iterations", "at least 1")

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = sparse_problem(y, operator)
        active = energy(problem.y) > 0
        s = problem.zeros()
        iterations = torch.zeros_like(active, dtype=torch.long)
        smoothing = torch.ones_like(s[:, :1])
        dual = torch.zeros_like(problem.y)
        with self.run(self.iterations) as run:
            for _ in range(self.iterations):
                rows = active.nonzero()[:, 0]
                if not len(rows) or not run.step():
                    break
                largest = s[rows].abs().amax(1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
                q = ((s[rows] / largest).square() + smoothing[rows]).pow(1 - self.p / 2)
                moved = self._least(problem, rows, q, dual)
                settled = relative(moved - s[rows], moved)[:, None] < smoothing[rows].sqrt() / 100
                s[rows] = moved
                iterations[rows] += 1
                active[rows] = ~(settled & (smoothing[rows] <= self.tolerance**2))[:, 0]
                smoothing[rows] = torch.where(settled, smoothing[rows] / 10, smoothing[rows])
        return problem.solution(s, iterations, ~active)

    def _least(self, problem: SparseProblem, rows: Tensor, q: Tensor, dual: Tensor) -> Tensor:
        """``Q A^T (A Q A^T)^-1 y`` of some signals ``(P, n)``, Q being diagonal.

        Without a matrix, `dual` has what the inverse made of y when Q was the one before, and then what it makes of it.
        """
        if isinstance(problem, DictionaryProblem):
            return self._directly(problem, rows, q)
        found = self._step_by_step(problem, rows, q, dual[rows])
        dual[rows] = found
        return q * problem.adjoint(found)

    def _directly(self, problem: DictionaryProblem, rows: Tensor, q: Tensor) -> Tensor:
        """By a Cholesky factor for each signal, in float64."""
        atoms = problem.atoms.double()
        together = max(1, LARGEST_STACK // atoms.numel())
        parts = []
        for y, weights in zip(problem.y[rows].double().split(together), q.double().split(together), strict=True):
            gram = (weights[:, None] * atoms) @ atoms.T
            diagonal = gram.diagonal(dim1=1, dim2=2)
            diagonal += self.damping * diagonal.mean(1, keepdim=True)
            # Not `cholesky`, which looks for failure, and a GPU makes the host wait for that; results are looked at.
            dual = torch.cholesky_solve(y[..., None], torch.linalg.cholesky_ex(gram)[0])[..., 0]
            parts.append(weights * (dual @ atoms))
        return torch.cat(parts).to(q.dtype)

    def _step_by_step(self, problem: SparseProblem, rows: Tensor, q: Tensor, start: Tensor) -> Tensor:
        """``(A Q A^T)^-1 y`` without a matrix; its mean diagonal is that of Q, times n / m for atoms of norm 1."""
        damping = self.damping * q.mean(1, keepdim=True) * problem.n / problem.m

        def normal(k: Tensor) -> Tensor:
            return problem.forward(q * problem.adjoint(k)) + damping * k

        return conjugate_gradients(normal, problem.y[rows], INNER_STEPS, tolerance=INNER_TOLERANCE, start=start)
