"""Muon: momentum whose matrices are made orthogonal before each step, for all weights of one shape together.

Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon. The size of its steps is that of Liu et al., "Muon is Scalable for LLM
Training", 2025, with which learning rates are those of Adam.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Of the quintic x -> a x + b x^3 + c x^5, which takes singular values from 0.01 on to 0.7..1.2 in five iterations.
QUINTIC = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
# The root mean square of Adam's steps of weights, over the learning rate.
ADAM_STEP = 0.2
SMALLEST_SIDE = 4  # of a matrix whose singular values are worth more than its entries
SMALLEST_NORM = 1e-12


class Muon(torch.optim.Optimizer):
    """Muon for matrices and convolutions, AdamW for all else.

    A convolution is the matrix ``(C_out, C_in k k)`` that it multiplies its patches with. torch's own Muon takes no
    convolutions, and timm's starts its kernels for each weight by itself.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, fused: bool = False
    ) -> None:
        """
        Args:
            weights: of the network.
            lr: learning rate of all of them.
            weight_decay: decoupled, as AdamW's.
            fused: whether AdamW updates its weights together.
        """
        weights = list(weights)
        self._adam = torch.optim.AdamW(
            [{"params": [weight for weight in weights if not is_matrix(weight)]}],
            lr,
            weight_decay=weight_decay,
            fused=fused,
        )
        matrices = {"params": [weight for weight in weights if is_matrix(weight)]}
        super().__init__(
            [matrices, *self._adam.param_groups], {"lr": lr, "weight_decay": weight_decay, "momentum": MOMENTUM}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the weights that have gradients; the result of `closure`, which computes these, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                alike[weight.device, weight.dtype, weight.shape].append(weight)
        for weights in alike.values():
            self._step_matrices(weights, group["lr"], group["weight_decay"], group["momentum"])
        # Both go through the same states and settings, which a checkpoint replaces when it is loaded.
        self._adam.state, self._adam.param_groups = self.state, self.param_groups[1:]
        self._adam.step()
        return loss

    def _step_matrices(self, weights: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        """Change weights of one shape."""
        for weight in weights:
            if weight not in self.state:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        # Nesterov's: as if this step's gradient had come once more.
        ahead = torch._foreach_lerp(gradients, momenta, momentum)
        steps = orthogonal(torch.stack([one.flatten(1) for one in ahead]).float())
        steps *= -lr * ADAM_STEP * max(steps.shape[1:]) ** 0.5
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, [step.view_as(weight) for weight, step in zip(weights, steps, strict=True)])


def is_matrix(weight: Tensor) -> bool:
    """Whether Muon's steps are for this weight: a matrix or convolution that does not just scale or add."""
    return weight.ndim >= 2 and min(len(weight), weight[0].numel()) >= SMALLEST_SIDE


def orthogonal(matrices: Tensor) -> Tensor:
    """About ``U V^T`` of matrices ``U S V^T``, ``(N, m, n)`` in float32, by Newton and Schulz's iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(SMALLEST_NORM)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
