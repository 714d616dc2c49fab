"""The two branches of coefficients learning: what holds the parameters, and how much of each coefficient counts.

Tang et al., "Training-free Ultra Small Model for Universal Sparse Reconstruction in Compressed Sensing", 2025
(arXiv:2501.11592); `cs_models.solvers.clomp` trains them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from cs_models.solvers.sparse_problem import SparseProblem, largest_mask

WEIGHT_SPEED = 0.05


class CoefficientParameters(nn.Module):
    """The paper's structure 1, and CLOMP's: the coefficients are the parameters."""

    def __init__(self, s: Tensor) -> None:
        super().__init__()
        self.s = nn.Parameter(s)

    def forward(self) -> Tensor:
        return self.s


class WeightedCoefficients(nn.Module):
    """The paper's learnable W: coefficients and their weights are learned, and their product is what they give.

    W starts at 1 and is learned `WEIGHT_SPEED` times as fast as the coefficients, which are much larger.
    """

    def __init__(self, s: Tensor) -> None:
        super().__init__()
        self.s = nn.Parameter(s)
        self.change = nn.Parameter(torch.zeros_like(s))

    def forward(self) -> Tensor:
        return self.s * (1 + WEIGHT_SPEED * self.change)


class CoefficientNetwork(nn.Module):
    """The paper's structure 2: a small network from the measurements of a signal to its coefficients.

    Every plane of the batch has a network of its own, which its signals share; all start from the same weights.
    """

    def __init__(self, problem: SparseProblem, neurons: int, generator: torch.Generator) -> None:
        super().__init__()
        y = torch.view_as_real(problem.y).flatten(-2) if problem.y.is_complex() else problem.y
        self._y = rearrange(y, "(p l) m -> p l m", p=problem.planes)
        inputs, outputs = y.shape[1], problem.n

        def uniform(fan_in: int, rows: int, columns: int) -> nn.Parameter:
            values = torch.empty(1, rows, columns).uniform_(-1, 1, generator=generator) / math.sqrt(fan_in)
            return nn.Parameter(values.to(y).repeat(problem.planes, 1, 1))

        self.weight_1, self.bias_1 = uniform(inputs, inputs, neurons), uniform(inputs, 1, neurons)
        self.weight_2, self.bias_2 = uniform(neurons, neurons, outputs), uniform(neurons, 1, outputs)

    def forward(self) -> Tensor:
        hidden = torch.relu(torch.baddbmm(self.bias_1, self._y, self.weight_1))
        return rearrange(torch.baddbmm(self.bias_2, hidden, self.weight_2), "p l n -> (p l) n")


Injection = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Residual-injection branch: from ``A^T r``, s and the last weight (0 at first), all ``(P, n)``, to the new weight."""


def no_injection(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
    """All coefficients count."""
    return torch.ones_like(s)


def omp_injection(threshold: float, mask: Literal["maximum", "softmax"]) -> Injection:
    """OMP's selection: coefficients whose correlation with the residual is near the largest are in from then on.

    Args:
        threshold: of the correlation, or with "softmax" of its softmax, as a share of the largest.
        mask: "maximum" or "softmax".
    """

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        strength = correlation.abs()
        largest = strength.amax(1, keepdim=True)
        bound = threshold * largest if mask == "maximum" else largest + math.log(threshold)
        # A signal without residual selects nothing.
        chosen = strength > bound.clamp_min(1e-6)
        return torch.maximum(previous, chosen.to(previous.dtype))

    return weight


def iht_injection(count: int) -> Injection:
    """IHT's selection: the `count` coefficients that are largest after a gradient step."""

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        return largest_mask(s + correlation, count).to(s.dtype)

    return weight


def ista_injection(threshold: float) -> Injection:
    """ISTA's shrinkage as a factor, ``1 - t / |u|`` (at least 0) of ``u = s + A^T r`` with t a share of the largest."""

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        magnitude = (s + correlation).abs()
        bound = threshold * magnitude.amax(1, keepdim=True)
        return (1 - bound / magnitude.clamp_min(torch.finfo(s.dtype).tiny)).clamp_min(0)

    return weight


def irls_injection(threshold: float) -> Injection:
    """IRLS's reweighting as a factor, ``u^2 / (u^2 + t^2)`` of ``u = s + A^T r`` with t a share of the largest."""

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        squared = (s + correlation).square()
        bound = threshold**2 * squared.amax(1, keepdim=True)
        return squared / (squared + bound).clamp_min(torch.finfo(s.dtype).tiny)

    return weight


class DataTerm(ABC):
    """How the two branches meet: the loss of every plane, and its gradient.

    Attributes:
        problem: what was measured, and of what.
        data: measurements ``(P, m)`` in the units of the coefficients.
        inject: residual-injection branch.
    """

    def __init__(self, problem: SparseProblem, data: Tensor, inject: Injection) -> None:
        self.problem = problem
        self.data = data
        self.inject = inject
        self.weight = problem.zeros()

    @abstractmethod
    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every plane, ``(N C,)``, and the gradient of their sum, ``(P, n)``, for coefficients ``(P, n)``."""

    def _plane_means(self, values: Tensor) -> Tensor:
        return reduce(values.abs().square(), "(p l) m -> p", "mean", p=self.problem.planes)


class MeasurementTerm(DataTerm):
    """``mean((y - A (weight * s))^2)``; the weight comes from the residual of the epoch before."""

    def __init__(self, problem: SparseProblem, data: Tensor, inject: Injection) -> None:
        super().__init__(problem, data, inject)
        self._correlation = problem.adjoint(data)

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        self.weight = self.inject(self._correlation, s, self.weight)
        residual = self.data - self.problem.forward(s * self.weight)
        # The correlation serves twice: for the gradient, and for the injection of the next epoch.
        self._correlation = self.problem.adjoint(residual)
        signals = len(self.data) // self.problem.planes
        return self._plane_means(residual), self._correlation * self.weight * (-2 / (signals * self.problem.m))


class IterateTerm(DataTerm):
    """The paper's s' - s form: ``mean((s' - s)^2)`` with s' what a classic method makes of s.

    ``s' = weight * (s + A^T (y - A s) / |A|^2)`` is a target, through which no gradient flows. Where the loss is 0, s
    is a fixed point of the method: of IHT, ISTA, IRLS, or of gradient descent on OMP's support.
    """

    def __init__(self, problem: SparseProblem, data: Tensor, inject: Injection) -> None:
        super().__init__(problem, data, inject)
        self._step = 1 / problem.squared_norm()

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        step = self._step * self.problem.adjoint(self.data - self.problem.forward(s))
        self.weight = self.inject(step, s, self.weight)
        change = self.weight * (s + step) - s
        signals = len(self.data) // self.problem.planes
        return self._plane_means(change), change * (-2 / (signals * self.problem.n))
