"""ISTA and FISTA: proximal gradient descent on the l1 problem (Beck and Teboulle, SIAM J. Imaging Sci. 2, 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cs_models.numerics import image_dot, per_image
from cs_models.solvers.convex import State
from cs_models.solvers.l1 import L1Problem, L1Solver


@dataclass(kw_only=True)
class ISTA(L1Solver):
    """Iterative soft thresholding with step ``1 / L``; the objective falls in every iteration."""

    def _minimise(self, problem: L1Problem, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def step(state: State) -> tuple[State, Tensor]:
            s, y = state
            moved = problem.descend(s, problem.gradient(problem.residual(s, y)))
            return (moved, y), problem.distance(s.sub_(moved), moved)

        return self._iterate((problem.start(y), y), step)


@dataclass(kw_only=True)
class FISTA(L1Solver):
    """ISTA with Nesterov's momentum, restarted where it points uphill (O'Donoghue and Candes, 2015).

    An iteration costs the same as one of ISTA: one synthesis, one analysis, A and its adjoint.
    """

    def _minimise(self, problem: L1Problem, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def step(state: State) -> tuple[State, Tensor]:
            s, ahead, momentum, y = state
            moved = problem.descend(ahead, problem.gradient(problem.residual(ahead, y)))
            jump = ahead.sub_(moved)
            change = problem.distance(jump, moved)
            stride = s.neg_().add_(moved)
            momentum = torch.where(image_dot(jump, stride) > 0, 1.0, momentum)
            following = (1 + torch.sqrt(1 + 4 * momentum**2)) / 2
            stride.mul_(per_image((momentum - 1) / following, stride)).add_(moved)
            return (moved, stride, following, y), change

        # A name for the start would keep it in memory to the end.
        return self._iterate(_resting(problem.start(y), y), step)


def _resting(s: Tensor, y: Tensor) -> State:
    """FISTA's state at a start without momentum."""
    return s, s.clone(), torch.ones(len(s), dtype=s.dtype, device=s.device), y


@dataclass(kw_only=True)
class LASSO(FISTA):
    """The tutorial's LASSO, ``|A D s - b|^2 + 5 |s|_1`` on the scale 0 .. 255, by FISTA."""


@dataclass(kw_only=True)
class WeightedL1(FISTA):
    """FISTA with a penalty that grows with the frequency, as the coefficients of photographs fall with it."""

    by_frequency: bool = True

    exact_weight: ClassVar[float] = 15.0
    noisy_weight: ClassVar[float] = 8.4
