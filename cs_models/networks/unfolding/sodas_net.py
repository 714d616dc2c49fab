"""SODAS-Net: unfolding with side information that travels between stages, and thresholds from the features themselves.

Song, Zhang, "SODAS-Net: Side-Information-Aided Deep Adaptive Shrinkage Network for Compressive Sensing", IEEE TIM 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.networks.unfolding.ista_net import Phase
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.one_matrix import OneMatrixModule
from cs_models.networks.unfolding.recursion import Problem, UnfoldingNetwork, check_schedule
from cs_models.numerics import as_dtype
from cs_models.settings import check_network_size, check_range


@dataclass(frozen=True)
class SODASNetConfig:
    """Architecture of SODAS-Net; the defaults are the paper's.

    Attributes:
        layers: stages.
        features: channels that travel between the stages: the estimate of the image, and side information.
        iterations_per_layer: how often each stage is applied; once where it is not given.
    """

    layers: int = 25
    features: int = 32
    iterations_per_layer: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_network_size(self.layers, self.features)
        check_range("features", self.features, 2)


class SODASStage(Phase):
    """A phase of ISTA-Net on all features, which adds to them; thresholds are means of the coefficients."""

    def __init__(self, features: int) -> None:
        super().__init__(features, plus=False, outer=features)
        self.threshold = nn.Parameter(torch.tensor(1.0))
        self.gather = nn.Identity()

    def level(self, s: Tensor) -> Tensor:
        """The learned multiple of each channel's mean ``(N, C, 1, 1)``, which may be negative."""
        return as_dtype(self.threshold, s.dtype) * s.mean((-2, -1), keepdim=True)


class SODASNet(UnfoldingNetwork):
    """The network, for one ratio and one matrix."""

    def __init__(self, config: SODASNetConfig = SODASNetConfig()) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, config.features - 1, 3, padding=1)
        self.layers = nn.ModuleList(SODASStage(config.features) for _ in range(config.layers))
        self.iterations_per_layer = check_schedule(config.iterations_per_layer or (1,) * config.layers, config.layers)

    def initial(self, problem: Problem) -> Tensor:
        """``A^T y`` and its side information ``(N, C, H, W)``."""
        return torch.cat([problem.aty, self.head(problem.aty)], dim=1)

    def iteration(self, x: Tensor, layer: nn.Module, condition: Tensor, problem: Problem) -> Tensor:
        assert isinstance(layer, SODASStage)
        features, _ = layer(problem.step_of_first_channel(x, layer.step_size), None)
        return features

    def estimate(self, state: Tensor, problem: Problem) -> Tensor:
        return state[:, :1]


class SODASNetModule(OneMatrixModule):
    """SODAS-Net for training: mean squared error of the last stage."""

    name = "sodas_net"
    title = "SODAS-Net"
    config_class = SODASNetConfig

    def __init__(
        self, network: SODASNetConfig = SODASNetConfig(), training: UnfoldingTraining = UnfoldingTraining()
    ) -> None:
        """
        Args:
            network: architecture.
            training: sampling, loss, optimiser, schedule.

        Raises:
            UserError: if the sampling has several ratios or matrices, or no blocks.
        """
        if training.sampling.kind != "block":
            raise UserError(f"{self.title} needs block sampling, not '{training.sampling.kind}'; give kind 'block'")
        super().__init__(SODASNet(network), network, training)
        self.carried.add_matrix(self.bank.matrix(training.sampling.ratios[0]))
