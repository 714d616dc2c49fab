"""COAST and R-COAST: unfolding for arbitrary sampling matrices, with feature modulation and recursion.

COAST: You, Zhang, Xie, Chen, Wang, "COAST: COntrollable Arbitrary-Sampling NeTwork for Compressive Sensing", IEEE
TIP 2021. R-COAST: "Recursions Are All You Need: Towards Efficient Deep Unfolding Networks", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs_models.networks.unfolding.modulation import FMU, RFMU, channel_gains
from cs_models.networks.unfolding.module import UnfoldingModule, UnfoldingTraining
from cs_models.networks.unfolding.recursion import Problem, UnfoldingNetwork, check_schedule
from cs_models.numerics import as_dtype
from cs_models.settings import check_network_size


@dataclass(frozen=True)
class COASTConfig:
    """Architecture of COAST and R-COAST.

    Attributes:
        layers: number of layers.
        features: channels of the convolutions.
        iterations_per_layer: how often each layer is applied; once where it is not given.
        modulation: "fmu" (COAST), "rfmu" (R-COAST) or "none" (gains of one).
        noise: whether the FMU sees the noise level too.
        deblock: convolutions on the assembled image, cropped to its size; off, they see isolated blocks.
    """

    layers: int = 20
    features: int = 32
    iterations_per_layer: tuple[int, ...] | None = None
    modulation: Literal["none", "fmu", "rfmu"] = "fmu"
    noise: bool = False
    deblock: bool = True

    def __post_init__(self) -> None:
        check_network_size(self.layers, self.features)


class CPMB(nn.Module):
    """Controllable Proximal Mapping Block: ``h + alpha conv(relu(conv(h)))`` with channel gains alpha."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, h: Tensor, gains: Tensor | None = None) -> Tensor:
        """Refine h ``(N, C, H, W)`` under gains that broadcast to it, or gains of one."""
        change = self.conv2(F.relu(self.conv1(h), inplace=True))
        return h + change if gains is None else torch.addcmul(h, gains, change)


class COASTLayer(nn.Module):
    """Step size and proximal network of one layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.step_size = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Conv2d(1, features, 3, padding=1)
        self.blocks = nn.ModuleList(CPMB(features) for _ in range(3))
        self.tail = nn.Conv2d(features, 1, 3, padding=1)

    def forward(self, r: Tensor, gains: Tensor) -> Tensor:
        """Refine the gradient step r ``(N, 1, H, W)`` under channel gains ``(C,)``."""
        h = self.head(r)
        gains = as_dtype(channel_gains(gains), h.dtype)
        for block in self.blocks:
            h = block(h, gains)
        return r + self.tail(h)


class COAST(UnfoldingNetwork):
    """The network: one set of weights for every ratio and every matrix."""

    def __init__(self, config: COASTConfig = COASTConfig()) -> None:
        super().__init__()
        self.features = config.features
        self.domain = "image" if config.deblock else "blocks"
        self.layers = nn.ModuleList(COASTLayer(config.features) for _ in range(config.layers))
        self.iterations_per_layer = check_schedule(config.iterations_per_layer or (1,) * config.layers, config.layers)
        self.modulation: FMU | RFMU | None = None
        if config.modulation == "fmu":
            self.modulation = FMU(config.features, config.noise)
        elif config.modulation == "rfmu":
            self.modulation = RFMU(config.features, sum(self.iterations_per_layer))

    def conditions(self, problem: Problem, schedule: tuple[int, ...]) -> list[Tensor]:
        """Channel gains ``(C,)`` of each iteration."""
        total = sum(schedule)
        if self.modulation is None:
            return [problem.aty.new_ones(self.features)] * total
        ratio = problem.measured_ratio
        if isinstance(self.modulation, FMU):
            return [self.modulation(ratio, problem.operator.noise_sigma)] * total
        return list(self.modulation(ratio, total))

    def iteration(self, x: Tensor, layer: nn.Module, condition: Tensor, problem: Problem) -> Tensor:
        assert isinstance(layer, COASTLayer)
        return layer(problem.gradient_step(x, layer.step_size), condition)


class COASTModule(UnfoldingModule):
    """COAST or R-COAST for training: mean squared error of the last iteration."""

    name = "coast"
    config_class = COASTConfig

    def __init__(self, network: COASTConfig = COASTConfig(), training: UnfoldingTraining = UnfoldingTraining()) -> None:
        """
        Args:
            network: architecture.
            training: sampling, loss, optimiser, schedule.
        """
        super().__init__(COAST(network), network, training)
