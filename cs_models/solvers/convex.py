"""What the convex solvers share: the loop with its stopping rule, and the proximal map of the data term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cs_models.numerics import conjugate_gradients, relative
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.operators.scaled import norm_by_power, probe
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver

State = tuple[Tensor, ...]
"""Tensors whose first dimension is the image; the first of them is the estimate."""

Step = Callable[[State], tuple[State, Tensor]]
"""One iteration: the next state, and how far each image is from a fixed point ``(N,)``."""

# Where conjugate gradients end within an iteration: each goes on where the last one ended, so that nothing is lost.
INNER_TOLERANCE = 1e-4


@dataclass(kw_only=True)
class ConvexSolver(IterativeSolver):
    """A solver that iterates until each image has settled.

    Attributes:
        iterations: the most iterations.
        tolerance: an image is finished when its relative change (each solver says of what) is at most this;
            0 runs all iterations.

    Raises:
        UserError: for settings outside their range.
    """

    iterations: int = 200
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.iterations >= 1, "iterations", "at least 1")
        self._require(self.tolerance >= 0, "tolerance", "0 or more")

    def _iterate(self, state: State, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Repeat a step; an image that has settled leaves the batch, so the others do not change its result.

        Returns:
            Estimates ``(N, ...)``, iterations ``(N,)`` and whether the tolerance was met ``(N,)``.
        """
        active = torch.arange(len(state[0]), device=state[0].device)
        iterations = torch.zeros_like(active)
        converged = torch.zeros_like(active, dtype=torch.bool)
        places, estimates = [], []
        with self.run(self.iterations) as run:
            for iteration in range(1, self.iterations + 1):
                if len(active) == 0 or not run.step():
                    break
                state, change = step(state)
                iterations[active] = iteration
                settled = change <= self.tolerance
                if bool(settled.any()):
                    converged[active[settled]] = True
                    places.append(active[settled])
                    estimates.append(state[0][settled])
                    active, state = active[~settled], tuple(part[~settled] for part in state)
        order = torch.cat([*places, active]).argsort()
        return torch.cat([*estimates, state[0]])[order], iterations, converged


def solution(x: Tensor, y: Tensor, operator: MeasurementOperator, iterations: Tensor, converged: Tensor) -> Solution:
    """A `Solution` with the relative residual of its images."""
    return Solution(x, iterations, relative(operator(x) - y, y), converged)


def constant_image(y: Tensor, operator: MeasurementOperator) -> Tensor:
    """The images of one grey value per channel that explain the measurements best, ``(N, C, H, W)``.

    From a black image, solvers spend most of their iterations on finding the mean brightness.
    """
    white = torch.ones(1, 1, *operator.image_size, dtype=y.real.dtype, device=y.device)
    measured = operator(white).flatten(2)
    energy = measured.abs().square().sum(-1)
    # 0 for masks of the spectrum that leave the mean out, whose best grey value is anything: black.
    brightness = (measured.conj() * y.flatten(2)).sum(-1).real / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    return brightness[..., None, None] * white


def operator_norm_squared(operator: MeasurementOperator) -> float:
    """An upper bound, tight for matrices and orthonormal rows, of ``|A|^2``, the largest eigenvalue of ``A^T A``."""
    if isinstance(operator, MatrixOperator):
        return float(torch.linalg.matrix_norm(operator.matrix.double(), ord=2)) ** 2
    if has_orthonormal_rows(operator):
        return 1.0
    return norm_by_power(operator) ** 2 * 1.02


def has_orthonormal_rows(operator: MeasurementOperator) -> bool:
    """Whether ``A A^T y = y``, tried on the measurements of one random image."""
    y = operator(probe(operator))
    return bool(torch.linalg.vector_norm(operator(operator.adjoint(y)) - y) < 1e-4 * torch.linalg.vector_norm(y))


class DataProximal:
    """``argmin_w |A w - y|^2 / 2 + rho / 2 |w - v|^2``, which is ``v + A^T (A A^T + rho I)^-1 (y - A v)``.

    Works on images of the operator's `padded_size`, where every block is whole. The inverse is a small matrix for
    operators with a matrix, a number for orthonormal rows, and conjugate gradients for the others.
    """

    def __init__(self, operator: MeasurementOperator, rho: float, tolerance: float = 0.0) -> None:
        """
        Args:
            operator: A.
            rho: weight of v.
            tolerance: where conjugate gradients end, as a share of ``y - A v``; what is left at 0 is rounding.
        """
        self.operator = operator.padded()
        self.rho = rho
        self.tolerance = tolerance
        self._inverse: Tensor | float | None = None
        if isinstance(operator, MatrixOperator) and not operator.orthonormal:
            matrix = operator.matrix.double()
            identity = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
            self._inverse = torch.linalg.inv(matrix @ matrix.T + rho * identity).to(operator.matrix)
        elif isinstance(operator, MatrixOperator) or has_orthonormal_rows(operator):
            self._inverse = 1 / (1 + rho)

    def __call__(self, v: Tensor, y: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The minimiser ``v + A^T k`` for v ``(N, C, H, W)`` and measurements y, and k, from which the next may start.

        From one iteration to the next k hardly changes.
        """
        residual = y - self.operator(v)
        if self._inverse is None:
            tolerance = max(self.tolerance, 10 * torch.finfo(residual.dtype).eps)
            k = conjugate_gradients(self._gram, residual, tolerance=tolerance, start=start)
        elif isinstance(self._inverse, Tensor):
            k = residual @ self._inverse
        else:
            k = residual * self._inverse
        return self.operator.adjoint(k).add_(v), k

    def _gram(self, k: Tensor) -> Tensor:
        return self.operator(self.operator.adjoint(k)) + self.rho * k
