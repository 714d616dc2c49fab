"""RK-CCSNet: Zheng, Li, Ren, et al., "Sequential Convolution and Runge-Kutta Residual Architecture for Image Compressed
Sensing", ECCV 2020."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.host_memory import check_memory
from cs_models.networks.learned_sampling.network import (
    LearnedSamplingModule,
    LearnedSamplingNetwork,
    Sensing,
    Trunk,
    conv,
    learned_ratio,
)
from cs_models.operators import MeasurementOperator
from cs_models.operators.learned import LearnedBlocks
from cs_models.operators.matrices import shapes_only
from cs_models.precision import no_tf32
from cs_models.settings import check_network_size
from cs_models.training.options import Training


@dataclass(frozen=True)
class RKCCSNetConfig:
    """Architecture of RK-CCSNet; the defaults are the paper's.

    Attributes:
        features: channels of the convolutions.
        blocks: Runge-Kutta blocks.
        injectors: an injector after every block.
        wired: blocks and injectors wired invertibly, which keeps no activations of them in training.
    """

    features: int = 64
    blocks: int = 8
    injectors: bool = False
    wired: bool = False

    def __post_init__(self) -> None:
        check_network_size(self.blocks, self.features, "blocks")


class ConvolvedBlocks(LearnedBlocks):
    """Sampling of each block by two linear convolutions: 3x3 of stride 2 to many channels, 1x1 to ``4 ratio``.

    Blocks see zeros around them.
    """

    pixels: Tensor

    def __init__(self, ratio: float, block_size: int, features: int) -> None:
        """
        Args:
            ratio: 0.25, 0.5, 0.75 or 1.
            block_size: B, even.
            features: channels between the convolutions.

        Raises:
            UserError: for another ratio, or an odd B.
        """
        super().__init__(ratio, block_size)
        self.channels = round(4 * ratio)
        if abs(4 * ratio - self.channels) > 1e-6 or block_size % 2:
            raise UserError(
                "rk_ccsnet takes 1 to 4 values of every 2x2 pixels: ratio 0.25, 0.5, 0.75 or 1, and an even block_size;"
                f" got {ratio:g} and {block_size}"
            )
        self.conv1 = nn.Conv2d(1, features, 3, bias=False)
        self.conv2 = nn.Conv2d(features, self.channels, 1, bias=False)
        if not shapes_only():
            check_memory(8 * block_size**4, f"all pixels of a block of {block_size}x{block_size}")
        pixels = torch.eye(block_size**2).view(-1, 1, block_size, block_size)
        self.register_buffer("pixels", pixels, persistent=False)

    def matrix(self) -> Tensor:
        # Both convolutions are linear, so they are one; what it makes of every single pixel are the matrix's columns.
        with torch.autocast(self.conv1.weight.device.type, enabled=False), no_tf32():
            kernel = torch.einsum("cfij,fopq->copq", self.conv2.weight, self.conv1.weight)
            return rearrange(F.conv2d(self.pixels, kernel, stride=2, padding=1), "n c p q -> (c p q) n")


class RungeKuttaBlock(nn.Module):
    """A step of a Runge-Kutta method of second order whose weights are learned; each stage is applied twice."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(conv(features, features), nn.PReLU(features))
        self.stage2 = nn.Sequential(conv(features, features), nn.PReLU(features))
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        b1 = torch.exp(-torch.exp(self.a))
        b2 = 1 - b1
        u = x + self.stage1(self.stage1(x)) / (2 * b2)
        return x + b1 * u + b2 * self.stage2(self.stage2(u))


class RKCCSNet(LearnedSamplingNetwork):
    """The network."""

    def __init__(self, config: RKCCSNetConfig, ratio: float, block_size: int = 32) -> None:
        """
        Args:
            config: architecture.
            ratio: CS ratio, see `ConvolvedBlocks`.
            block_size: B.
        """
        super().__init__()
        sampling = ConvolvedBlocks(ratio, block_size, config.features)
        side = block_size // 2
        back = nn.Sequential(
            Rearrange("n (c p q) h w -> n c (h p) (w q)", p=side, q=side),
            nn.Conv2d(sampling.channels, 4, 1, bias=False),
            nn.PixelShuffle(2),
        )
        self.sensing = Sensing(sampling, back)
        self.head = conv(1, config.features)
        blocks = [RungeKuttaBlock(config.features) for _ in range(config.blocks)]
        self.trunk = Trunk(blocks, config.features, config.injectors, config.wired)
        self.body = conv(config.features, config.features)
        self.tail = conv(config.features, 1)

    def refine(self, initial: Tensor) -> Tensor:
        head = self.head(initial)
        return initial + self.tail(head + self.body(self.trunk(head, self.sensing, initial)))


class RKCCSNetModule(LearnedSamplingModule):
    """RK-CCSNet for training: root mean squared error of the final estimate, plus that of the initial one."""

    name = "rk_ccsnet"
    config_class = RKCCSNetConfig
    network: LearnedSamplingNetwork

    def __init__(self, network: RKCCSNetConfig = RKCCSNetConfig(), training: Training = Training()) -> None:
        """
        Args:
            network: architecture.
            training: sampling, optimiser, schedule.

        Raises:
            UserError: if the sampling has several ratios, noise, no blocks, or a ratio that is no multiple of 1/4.
        """
        sampling = training.sampling
        ratio = learned_ratio(sampling, self.name)
        super().__init__(RKCCSNet(network, ratio, sampling.block_size), network, training)

    def training_loss(
        self,
        x: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        final, initial = self.network.estimates(y, operator)
        return F.mse_loss(final.float(), x).sqrt() + F.mse_loss(initial, x).sqrt()
