"""Test-time adaptation: a copy of a network is fine-tuned on the very measurements that it is to reconstruct from."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from cs_models.operators import MeasurementOperator
from cs_models.operators.bank import mix
from cs_models.precision import no_tf32
from cs_models.reconstruction import Solution
from cs_models.training.module import ReconstructionModule
from cs_models.training.supervision import loss_without_truth

# Of (seed, step, stream): noise and probes, which no training step shares.
_STREAM = 3


@dataclass(frozen=True)
class Adaptation:
    """How a network is adapted to the measurements of an image; nobody's ground truth is used.

    Attributes:
        steps: of Adam, each on all measurements of the image.
        rate: learning rate.
        loss: a name of `cs_models.training.supervision.LOSSES`.
    """

    steps: int
    rate: float
    loss: str

    def solve(self, method: ReconstructionModule, y: Tensor, operator: MeasurementOperator) -> Solution:
        """Reconstruct each image by a copy of its own; the method stays as it is.

        Args:
            method: a trained network that takes any operator.
            y: measurements ``(N, C, ...)``.
            operator: what measured them.

        Raises:
            UserError: as `Reconstructor.solve`, and if the loss is not for this operator.
        """
        images = [self.adapted(method, one, operator).reconstruct(one, operator) for one in y.split(1)]
        return Solution(torch.cat(images))

    def adapted(self, method: ReconstructionModule, y: Tensor, operator: MeasurementOperator) -> ReconstructionModule:
        """A copy of a method, fine-tuned on measurements ``(1, C, ...)``."""
        own = _copied(method)
        ready_y, ready = own.checked(y, operator)
        planes = rearrange(ready_y, "n c ... -> (n c) 1 ...")
        optimizer = torch.optim.Adam(own.network.parameters(), self.rate)

        def estimate(y: Tensor, operator: MeasurementOperator) -> Tensor:
            return own.estimates(own.network, y, operator)[-1].float()

        options = own.training_options
        with torch.enable_grad(), no_tf32():
            for step in range(self.steps):
                generator = torch.Generator().manual_seed(mix(options.sampling.seed, step, _STREAM))
                loss = loss_without_truth(self.loss, options, estimate, planes, ready, step, generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                torch.clear_autocast_cache()  # it would keep the weights of the first step
        return own


def _copied(method: ReconstructionModule) -> ReconstructionModule:
    """The same method with weights of its own; everything else is shared."""
    own = copy.copy(method)
    own._modules = dict(method._modules)
    own.network = copy.deepcopy(method.evaluated_network).requires_grad_(True)
    own.ema = None
    return own
