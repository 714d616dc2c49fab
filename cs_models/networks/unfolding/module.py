"""Unfolding networks for training: recursion schedules, intermediate estimates, and the default loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.networks.unfolding.recursion import Unfolded, UnfoldingNetwork, check_schedule, draw_schedule
from cs_models.operators import BlockOperator, MeasurementOperator
from cs_models.operators.learned import NestedRows
from cs_models.operators.matrices import check_ratio, rows_for_ratio
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_on == "all" and self.supervision != "ground_truth":
            raise UserError(f"training.supervision {self.supervision} looks at the last iteration; set loss_on final")
        if self.random_iterations and self.cuda_graphs:
            raise UserError("training.cuda_graphs repeats one schedule; set random_iterations or cuda_graphs false")


class UnfoldingModule(ReconstructionModule):
    """An unfolding network for training: mean squared error of the last iteration, or of all.

    With ``sampling.matrices: learned`` it trains its sampling too, the same nested rows for every ratio.

    Attributes:
        iterations_per_layer: the schedule of reconstructions; None for the network's own.
    """

    training_class = UnfoldingTraining
    any_operator = True
    learns_rows = True
    network: UnfoldingNetwork
    training_options: UnfoldingTraining

    def __init__(self, network: UnfoldingNetwork, config: Any, training: UnfoldingTraining) -> None:
        sampling = training.sampling
        if sampling.matrices == "learned" and self.learns_rows:
            network.sampling = NestedRows(max(sampling.ratios), sampling.block_size)
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

    def training_operator(
        self, image_size: tuple[int, int], step: int = 0, device: torch.device | str = "cpu"
    ) -> MeasurementOperator:
        rows = nested_rows(self.network)
        if rows is None:
            return super().training_operator(image_size, step, device)
        ratio, sigma = self.bank.draw_settings(step)
        return rows.at(ratio, image_size, sigma)

    def default_operator(
        self, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> MeasurementOperator:
        rows = nested_rows(self.evaluated_network)
        if rows is None:
            return super().default_operator(ratio, image_size, seed, noise_sigma)
        check_ratio(ratio)
        if ratio > rows.ratio + 1e-6:
            raise UserError(f"this {self.name} learned its sampling for ratios up to {rows.ratio:g}, not {ratio:g}")
        matrix, source = rows.fixed()
        return BlockOperator(matrix[: rows_for_ratio(ratio, matrix.shape[1])], image_size, ratio, noise_sigma, source)

    def constrain(self) -> None:
        rows = nested_rows(self.network)
        if rows is not None:
            rows.constrain()

    def training_schedule(self, step: int) -> tuple[int, ...] | None:
        """How often each layer is applied in a training step; None for the network's own schedule."""
        if not self.training_options.random_iterations:
            return None
        return draw_schedule(self.network.iterations_per_layer, self.training_options.sampling.seed, step)

    def training_estimate(self, y: Tensor, operator: MeasurementOperator, step: int = 0) -> Tensor:
        return self.network.unfold(y, operator, self.training_schedule(step)).iterates[-1]

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


def nested_rows(network: nn.Module) -> NestedRows | None:
    """The rows that a network trains along, or None."""
    rows = getattr(network, "sampling", None)
    return rows if isinstance(rows, NestedRows) else None
