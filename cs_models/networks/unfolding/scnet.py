"""SCNet: unfolding whose features travel from stage to stage, for any sampling matrix with orthonormal rows.

Chen, Zhang, Liu, Zhang, Zhang, "Self-Supervised Scalable Deep Compressed Sensing", IJCV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cs_models.networks.unfolding.coast import CPMB
from cs_models.networks.unfolding.modulation import RFMU, channel_gains
from cs_models.networks.unfolding.module import UnfoldingModule, UnfoldingTraining
from cs_models.networks.unfolding.recursion import Problem, UnfoldingNetwork, check_schedule
from cs_models.numerics import as_dtype
from cs_models.settings import check_network_size


@dataclass(frozen=True)
class SCNetConfig:
    """Architecture of SCNet; the defaults are the paper's.

    Attributes:
        layers: stages.
        features: channels that travel between the stages; the first one is the estimate of the image.
        iterations_per_layer: how often each stage is applied; once where it is not given.
        modulation: "rfmu" scales what each stage adds by a recursive unit, for stages that are applied several times.
    """

    layers: int = 20
    features: int = 32
    iterations_per_layer: tuple[int, ...] | None = None
    modulation: Literal["none", "rfmu"] = "none"

    def __post_init__(self) -> None:
        check_network_size(self.layers, self.features)


class SCNet(UnfoldingNetwork):
    """The network: one set of weights for every ratio and every matrix with orthonormal rows."""

    def __init__(self, config: SCNetConfig = SCNetConfig()) -> None:
        super().__init__()
        self.head = nn.Conv2d(2, config.features, 3, padding=1)
        self.layers = nn.ModuleList(CPMB(config.features) for _ in range(config.layers))
        self.tail = nn.Conv2d(config.features, 1, 3, padding=1)
        self.iterations_per_layer = check_schedule(config.iterations_per_layer or (1,) * config.layers, config.layers)
        self.modulation = RFMU(config.features, sum(self.iterations_per_layer)) if config.modulation == "rfmu" else None

    def initial(self, problem: Problem) -> Tensor:
        """Features ``(N, C, H, W)`` of ``A^T y`` and of a constant map of M / N."""
        ratio = torch.full_like(problem.aty, problem.measured_ratio)
        return self.head(torch.cat([problem.aty, ratio], dim=1))

    def conditions(self, problem: Problem, schedule: tuple[int, ...]) -> list[Tensor]:
        """Channel gains ``(C,)`` of each iteration; empty without modulation."""
        if self.modulation is None:
            return super().conditions(problem, schedule)
        return list(self.modulation(problem.measured_ratio, sum(schedule)))

    def iteration(self, x: Tensor, layer: nn.Module, condition: Tensor, problem: Problem) -> Tensor:
        assert isinstance(layer, CPMB)
        # Rows are orthonormal, so that a step of size 1 projects onto the images that fit the measurements.
        h = problem.step_of_first_channel(x, 1.0)
        return layer(h, None if self.modulation is None else as_dtype(channel_gains(condition), h.dtype))

    def estimate(self, state: Tensor, problem: Problem) -> Tensor:
        """The image of features ``(N, C, H, W)``: a convolution and one more projection."""
        return problem.gradient_step(self.tail(state), 1.0)


class SCNetModule(UnfoldingModule):
    """SCNet for training with ground truth: mean squared error of the last stage."""

    name = "scnet"
    config_class = SCNetConfig

    def __init__(self, network: SCNetConfig = SCNetConfig(), training: UnfoldingTraining = UnfoldingTraining()) -> None:
        """
        Args:
            network: architecture.
            training: sampling, loss, optimiser, schedule.
        """
        super().__init__(SCNet(network), network, training)
