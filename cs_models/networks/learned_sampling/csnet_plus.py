"""CSNet+: Shi, Jiang, Liu, Zhao, "Image Compressed Sensing Using Convolutional Neural Network", IEEE TIP 2020."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs_models.networks.learned_sampling.network import (
    LearnedSamplingModule,
    LearnedSamplingNetwork,
    Sensing,
    Trunk,
    conv,
    learned_ratio,
)
from cs_models.operators import MeasurementOperator
from cs_models.operators.learned import DenseBlocks, Start
from cs_models.settings import check_network_size
from cs_models.training.options import Training


@dataclass(frozen=True)
class CSNetPlusConfig:
    """Architecture of CSNet+; the defaults are the paper's.

    Attributes:
        features: channels of the convolutions.
        blocks: residual blocks.
        start: what the sampling matrix starts from, see `DenseBlocks`.
        binary: whether the matrix has entries +-1 / B only.
        injectors: an injector after every block.
        wired: blocks and injectors wired invertibly, which keeps no activations of them in training.
    """

    features: int = 64
    blocks: int = 5
    start: Start = "gaussian"
    binary: bool = False
    injectors: bool = False
    wired: bool = False

    def __post_init__(self) -> None:
        check_network_size(self.blocks, self.features, "blocks")


class ResidualBlock(nn.Module):
    """``relu(conv(relu(conv(x)) + x))``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = conv(features, features)
        self.conv2 = conv(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x)) + x))


class CSNetPlus(LearnedSamplingNetwork):
    """The network."""

    def __init__(self, config: CSNetPlusConfig, ratio: float, block_size: int = 32, seed: int = 0) -> None:
        """
        Args:
            config: architecture.
            ratio: CS ratio.
            block_size: B.
            seed: of the sampling matrix's start.
        """
        super().__init__()
        sampling = DenseBlocks(ratio, block_size, config.start, config.binary, seed)
        back = nn.Conv2d(len(sampling.weight), block_size**2, 1, bias=False)
        self.sensing = Sensing(sampling, nn.Sequential(back, nn.PixelShuffle(block_size)))
        self.head = conv(1, config.features, bias=False)
        blocks = [ResidualBlock(config.features) for _ in range(config.blocks)]
        self.trunk = Trunk(blocks, config.features, config.injectors, config.wired)
        self.tail = conv(config.features, 1, bias=False)

    def refine(self, initial: Tensor) -> Tensor:
        return initial + self.tail(self.trunk(F.relu(self.head(initial)), self.sensing, initial))


class CSNetPlusModule(LearnedSamplingModule):
    """CSNet+ for training: half the squared error of the final estimate, and half that of the initial one."""

    name = "csnet_plus"
    config_class = CSNetPlusConfig
    network: LearnedSamplingNetwork

    def __init__(self, network: CSNetPlusConfig = CSNetPlusConfig(), training: Training = Training()) -> None:
        """
        Args:
            network: architecture.
            training: sampling, optimiser, schedule.

        Raises:
            UserError: if the sampling has several ratios, noise, or no blocks.
        """
        sampling = training.sampling
        ratio = learned_ratio(sampling, self.name)
        super().__init__(CSNetPlus(network, ratio, sampling.block_size, sampling.seed), network, training)

    def training_loss(
        self,
        x: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        final, initial = self.network.estimates(y, operator)
        return (F.mse_loss(final.to(x.dtype), x) + F.mse_loss(initial, x)) / 2
