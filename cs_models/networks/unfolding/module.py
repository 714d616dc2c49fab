"""Unfolding networks for training: recursion schedules, intermediate estimates, and the default loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs_models.networks.unfolding.recursion import Unfolded, UnfoldingNetwork, check_schedule, draw_schedule
from cs_models.operators import MeasurementOperator
from cs_models.training.module import ReconstructionModule
from cs_models.training.options import Training


@dataclass(frozen=True)
class UnfoldingTraining(Training):
    """How an unfolding network is trained.

    Attributes:
        random_iterations: each training step draws how often each layer is applied, uniformly from 1 up to the
            network's own schedule.
        loss_on: "final", or "all" for the mean over every iteration's output.
    """

    random_iterations: bool = False
    loss_on: Literal["final", "all"] = "final"


class UnfoldingModule(ReconstructionModule):
    """An unfolding network for training: mean squared error of the last iteration, or of all.

    Attributes:
        iterations_per_layer: the schedule of reconstructions; None for the network's own.
    """

    training_class = UnfoldingTraining
    network: UnfoldingNetwork
    training_options: UnfoldingTraining

    def __init__(self, network: UnfoldingNetwork, config: Any, training: UnfoldingTraining) -> None:
        super().__init__(network, config, training)
        self.iterations_per_layer: tuple[int, ...] | None = None

    def compiled_parts(self) -> list[nn.Module]:
        """The layers, which are all of one kind and share their graph, whatever the schedule."""
        return list(self.network.layers)

    def estimates(
        self, network: nn.Module, y: Tensor, operator: MeasurementOperator, keep_all: bool = False
    ) -> list[Tensor]:
        assert isinstance(network, UnfoldingNetwork)
        return network.unfold(y, operator, self.iterations_per_layer, keep_all).iterates

    @property
    def schedule(self) -> tuple[int, ...]:
        return self.iterations_per_layer or self.network.iterations_per_layer

    def set_schedule(self, iterations_per_layer: Sequence[int]) -> None:
        self.iterations_per_layer = check_schedule(iterations_per_layer, len(self.network.layers))

    def training_schedule(self, step: int) -> tuple[int, ...] | None:
        """How often each layer is applied in a training step; None for the network's own schedule."""
        if not self.training_options.random_iterations:
            return None
        return draw_schedule(self.network.iterations_per_layer, self.training_options.sampling.seed, step)

    def training_loss(
        self,
        x: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.error(self.training_run(y, operator, step), x)

    def training_run(self, y: Tensor, operator: MeasurementOperator, step: int) -> Unfolded:
        """Run the network on a training batch, under the schedule of this step."""
        return self.network.unfold(y, operator, self.training_schedule(step), self.training_options.loss_on == "all")

    @staticmethod
    def error(run: Unfolded, x: Tensor) -> Tensor:
        """Mean squared error of what was kept of a run, against images ``(N, 1, H, W)``."""
        return torch.stack([F.mse_loss(iterate.float(), x) for iterate in run.iterates]).mean()
