"""Coefficients on a known support: least squares, and how many of them the noise leaves worth keeping."""

from __future__ import annotations

import torch
from torch import Tensor

from cs_models.numerics import all_settled
from cs_models.solvers.sparse_problem import SparseProblem, energy


def within_noise(problem: SparseProblem, s: Tensor, iterations: int = 50) -> Tensor:
    """The fewest of some coefficients that explain the measurements up to the noise, fitted anew.

    K coefficients, where K was not chosen by the noise, fit the noise as well. The smallest are dropped as long as the
    residual stays what the noise is expected to be (the discrepancy principle); to drop one costs about its square,
    since the atoms have norm 1.

    Args:
        problem: y, A and the noise; without noise nothing is dropped.
        s: coefficients ``(P, n)``.
        iterations: see `fit_on_support`.
    """
    room = problem.noise_energy - energy(problem.y - problem.forward(s))
    ordered = s.square().sort(dim=1)
    dropped = (ordered.values.cumsum(1) <= room[:, None]) & (ordered.values > 0)
    kept = (s != 0).scatter(1, ordered.indices, (ordered.values > 0) & ~dropped)
    fewer = dropped.any(1, keepdim=True)
    if not bool(fewer.any()):
        return s
    return torch.where(fewer, fit_on_support(problem, kept, s, iterations), s)


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
