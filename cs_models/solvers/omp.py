"""Orthogonal matching pursuit, for all signals at once.

Pati, Rezaiifar and Krishnaprasad, "Orthogonal Matching Pursuit", 1993. The selected atoms of every signal are kept
as an orthonormal basis that grows by Gram-Schmidt, applied twice where needed: the residual stays orthogonal to the
support to rounding even where K approaches m, which the inverse Cholesky factor of the atoms' Gram matrix does not
give in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cs_models.numerics import all_settled
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver, Run
from cs_models.solvers.sparse_problem import dictionary_problem, energy, sparsity_of

# An atom whose part outside the support's span is smaller than this (of 1) adds nothing but rounding errors.
DEPENDENT = 1e-5
# Gram-Schmidt is applied again where it has cancelled half of an atom, or more.
REORTHOGONALISE = 0.5
# Bytes of the bases of the signals that are solved together: what fits a CPU's cache, or fills a GPU.
CPU_BYTES, GPU_BYTES = 2**24, 2**31


class SupportBasis:
    """Orthonormal bases of the selected atoms of P signals, and the residuals of the signals.

    Attributes:
        residual: y minus its projection on the support, ``(P, m)``.
        count: number of atoms in each support ``(P,)``.
        used: atoms that are in the support or depend on it, ``(P, n)``.
    """

    def __init__(self, y: Tensor, atoms: Tensor, capacity: int) -> None:
        """
        Args:
            y: ``(P, m)``.
            atoms: ``(m, n)`` of unit norm.
            capacity: the largest support, at most m.
        """
        signals, m = y.shape
        self._y = y
        self._atoms = atoms.T.contiguous()
        # The last place is never read: it takes what is not added to a full basis, so that nobody need be left out.
        self._basis = y.new_zeros(signals, capacity + 1, m)
        self._support = torch.zeros(signals, capacity + 1, dtype=torch.long, device=y.device)
        self.residual = y.clone()
        self.count = torch.zeros(signals, dtype=torch.long, device=y.device)
        self.used = torch.zeros(signals, atoms.shape[1], dtype=torch.bool, device=y.device)

    @property
    def capacity(self) -> int:
        """The largest support."""
        return self._basis.shape[1] - 1

    def extend(self, indices: Tensor, wanted: Tensor) -> None:
        """Add atoms to the supports; those that depend on the support already are only marked as used.

        Args:
            indices: ``(P, t)``, no atom twice in a row.
            wanted: which of them to add ``(P, t)``; at most `capacity` - `count` a row.
        """
        self.used.scatter_(1, indices, self.used.gather(1, indices) | wanted)
        rows = wanted.any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return
        everyone = len(rows) == len(wanted)
        largest = int(self.count[rows].max())
        basis = self._basis[:, :largest] if everyone else self._basis[rows, :largest]
        residual, indices, wanted = self.residual[rows], indices[rows], wanted[rows]

        new = self._atoms[indices] * wanted[..., None]
        new = torch.baddbmm(new, (basis @ new.mT).mT, basis, alpha=-1)
        if bool((wanted & (new.norm(dim=2) < REORTHOGONALISE)).any()):
            new = torch.baddbmm(new, (basis @ new.mT).mT, basis, alpha=-1)
        for j in range(new.shape[1]):
            vector = new[:, j]
            norm = vector.norm(dim=1, keepdim=True)
            vector = torch.where(norm > DEPENDENT, vector / norm.clamp_min(DEPENDENT), 0)
            residual = residual - (residual * vector).sum(1, keepdim=True) * vector
            if j + 1 < new.shape[1]:
                later = new[:, j + 1 :]
                new[:, j + 1 :] = later - (later @ vector[..., None]) * vector[:, None]
            valid = (norm[:, 0] > DEPENDENT) & wanted[:, j]
            self._append(rows, vector, indices[:, j], valid)
        self.residual[rows] = residual

    def _append(self, rows: Tensor, vectors: Tensor, indices: Tensor, valid: Tensor) -> None:
        """Write vectors, 0 where they are not valid, into the next place of each basis, which only valid ones fill."""
        slots = self.count[rows]
        self._basis[rows, slots] = vectors
        self._support[rows, slots] = indices
        self.count[rows] = slots + valid

    def coefficients(self) -> Tensor:
        """Least-squares coefficients of the supports, ``(P, n)``."""
        largest = int(self.count.max())
        basis, support = self._basis[:, :largest], self._support[:, :largest]
        filled = torch.arange(largest, device=support.device) < self.count[:, None]
        triangle = (basis @ self._atoms[support].mT).triu()
        triangle.diagonal(dim1=1, dim2=2).masked_fill_(~filled, 1)
        triangle = triangle * (filled[:, None] | torch.eye(largest, dtype=torch.bool, device=support.device))
        values = torch.linalg.solve_triangular(triangle, basis @ self._y[..., None], upper=True)[..., 0]
        s = torch.zeros(self.used.shape, dtype=self._y.dtype, device=self._y.device)
        return s.scatter_add_(1, support, values * filled)


@dataclass(kw_only=True)
class OMP(IterativeSolver):
    """Orthogonal matching pursuit: one atom per step, the one that correlates most with the residual.

    Attributes:
        sparsity: K, atoms of a signal; None: a quarter of its measurements.
        tolerance: stop a signal earlier, where the residual is below this share of y, or what the noise is expected to
            be.
    """

    sparsity: int | None = None
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.tolerance >= 0, "tolerance", "0 or more")

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = dictionary_problem(y, operator, "omp")
        steps = sparsity_of(self.sparsity, 0.25, problem.m, problem.n)
        together = signals_together(problem.y, steps)
        target = (energy(problem.y) * self.tolerance**2).clamp_min(problem.noise_energy)
        groups, targets = problem.y.split(together), target.split(together)
        with self.run(steps * len(groups)) as run:
            results = [
                self._pursue(group, problem.atoms, steps, target, run)
                for group, target in zip(groups, targets, strict=True)
            ]
        s, iterations, converged = (torch.cat(parts) for parts in zip(*results, strict=True))
        return problem.solution(s, iterations, converged)

    @staticmethod
    def _pursue(y: Tensor, atoms: Tensor, steps: int, target: Tensor, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        basis = SupportBasis(y, atoms, steps)
        iterations = torch.zeros_like(basis.count)
        active = energy(y) > target
        for iteration in range(steps):
            if all_settled(active, iteration) or not run.step():
                break
            correlation = (basis.residual @ atoms).abs_().masked_fill_(basis.used, -1)
            basis.extend(correlation.argmax(dim=1, keepdim=True), active[:, None])
            iterations += active
            active = active & (energy(basis.residual) > target)
        return basis.coefficients(), iterations, ~active | (iterations == steps)


def signals_together(y: Tensor, capacity: int) -> int:
    """How many of the signals ``(P, m)`` to solve at once, so that their bases fit `CPU_BYTES` or `GPU_BYTES`."""
    available = CPU_BYTES if y.device.type == "cpu" else GPU_BYTES
    return max(1, available // (y.shape[1] * capacity * y.element_size()))
