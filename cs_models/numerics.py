"""Norms, inner products and linear systems of a batch, one value or one system per image.

And how tensors are made that outlive a call or that a graph is recorded of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Iterations from one question to a GPU, whether anything is left to do, to the next.
LOOK_EVERY = 10


def all_settled(active: Tensor, iteration: int) -> bool:
    """Whether no image or signal is active any more, asked before an iteration.

    A GPU is asked in every tenth one: the host waits for its answer, and then it for the host. So iterations must leave
    alone what is not active.

    Args:
        active: which are ``(P,)``.
        iteration: number of the iteration, from 0.
    """
    if active.device.type != "cpu" and iteration % LOOK_EVERY:
        return False
    return not bool(active.any())


@contextmanager
def for_good() -> Iterator[None]:
    """A context, and a decorator, for making tensors that are kept: those of inference mode never allow a gradient."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a dtype. Where it has it already a recorded graph stays without the conversion, unlike with `to`."""
    return x if x.dtype == dtype else x.to(dtype)


def image_norm(x: Tensor) -> Tensor:
    """Euclidean norm of everything that belongs to one image: ``(N, ...)`` to ``(N,)``, real."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def image_dot(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product for each image: ``(N, ...)`` and ``(N, ...)`` to ``(N,)``."""
    if len(a) == 1:  # as mostly in a benchmark; the batched product below takes thrice as long to begin
        return torch.vdot(a.flatten(), b.flatten()).real[None]
    # Unlike vecdot, einsum keeps no product of the size of the images.
    return torch.einsum("nk,nk->n", a.flatten(1).conj(), b.flatten(1)).real


def relative(change: Tensor, reference: Tensor) -> Tensor:
    """Norm of a change ``(N, ...)`` as a share of the norm of a reference ``(N, ...)``; 0 where nothing changes."""
    norm = image_norm(reference)
    return image_norm(change) / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def per_image(factor: Tensor, like: Tensor) -> Tensor:
    """Factors ``(N,)`` in a shape that broadcasts against ``(N, ...)``."""
    return factor.view(-1, *[1] * (like.ndim - 1))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    iterations: int = 20,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 0.0,
    start: Tensor | None = None,
) -> Tensor:
    """Solve ``M k = right`` for each image of a batch ``(N, ...)``.

    Args:
        apply: k -> M k, symmetric and positive definite.
        right: right-hand sides.
        iterations: at most; how near they come depends on the condition of M.
        precondition: k -> about ``M^-1 k``, symmetric and positive definite.
        tolerance: an image is left as it is once the norm of its residual is at most this share of the right-hand
            side's.
        start: the first k, zeros where it is not given.
    """
    k = torch.zeros_like(right) if start is None else start
    residual = right if start is None else right - apply(start)
    direction = residual if precondition is None else precondition(residual)
    energy = image_dot(residual, direction)
    tiny = torch.finfo(energy.dtype).tiny
    least = tolerance * image_norm(right)
    for iteration in range(iterations):
        # What an image has reached must not depend on its neighbours in the batch.
        active = image_norm(residual) > least
        if all_settled(active, iteration):
            break
        mapped = apply(direction)
        step = torch.where(active, energy / image_dot(direction, mapped).clamp_min(tiny), 0)
        k, residual = k + per_image(step, right) * direction, residual - per_image(step, right) * mapped
        turned = residual if precondition is None else precondition(residual)
        following = image_dot(residual, turned)
        direction = turned + per_image(following / energy.clamp_min(tiny), right) * direction
        energy = following
    return k
