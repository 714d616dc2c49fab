"""CUDA graphs of training steps: one recording for each ratio, whose kernels a GPU repeats without the CPU.

A deep network on small batches runs some thousand short kernels in a step, and a CPU takes longer to start them than a
GPU to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cs_models.operators.base import MatrixOperator
from cs_models.operators.matrices import rows_for_ratio
from cs_models.training.module import ReconstructionModule


class StepLoss(nn.Module):
    """The training loss of one ratio as a function of tensors alone, as a recording needs it.

    Attributes:
        network: whose weights the gradients are of.
    """

    def __init__(self, method: ReconstructionModule, operator: MatrixOperator) -> None:
        """
        Args:
            method: what is trained.
            operator: one of this ratio, whose matrix is given anew in every step.
        """
        super().__init__()
        self.network = method.network
        self._parts = method, operator  # in a tuple, so that their weights and buffers are not those of this module

    def forward(self, x: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
        """Loss of images ``(N, 1, H, W)``, their measurements ``(N, 1, L, M)`` and their matrix ``(M, n)``."""
        method, operator = self._parts
        return method.training_loss(x, y, operator.with_matrix(matrix, operator.ratio, 0.0))


class StepGraphs:
    """The loss of a training step and its gradients, as recordings that are repeated.

    A repetition overwrites the gradients of the one before: they must be used up by then.
    """

    def __init__(self, method: ReconstructionModule, x: Tensor) -> None:
        """Record a step for each ratio that training draws, by running it some times.

        Args:
            method: what is trained; its sampling is by blocks without noise, see `Training.cuda_graphs`.
            x: images ``(N, 1, H, W)`` on the GPU, as many and as large as those of every step.
        """
        sampling = method.training_options.sampling
        ratios, learned = sampling.ratios, sampling.matrices == "learned"
        largest = method.default_operator(max(ratios), (x.shape[-2], x.shape[-1])).to(x.device)
        assert isinstance(largest, MatrixOperator)
        pool = torch.cuda.graph_pool_handle()  # a step's memory is free again when the next one begins, of any ratio
        self._losses: dict[float, Callable[..., Any]] = {}
        # Casts that autocast keeps would be those of the weights at the time of the recording.
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            for ratio in ratios:
                matrix = largest.matrix[: rows_for_ratio(ratio, largest.matrix.shape[1])]
                operator = largest.with_matrix(matrix, ratio, 0.0)
                # Rows that are trained along have gradients, and so have the measurements that they take.
                example = x, operator(x).requires_grad_(learned), matrix.detach().requires_grad_(learned)
                self._losses[ratio] = torch.cuda.make_graphed_callables(
                    StepLoss(method, operator), example, num_warmup_iters=1, allow_unused_input=True, pool=pool
                )

    def loss(self, x: Tensor, y: Tensor, operator: MatrixOperator) -> Tensor:
        """What `training_loss` gives, with its gradients, for images of the shape that was recorded."""
        loss: Tensor = self._losses[operator.ratio](x, y, operator.matrix)
        return loss
