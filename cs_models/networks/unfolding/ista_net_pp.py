"""ISTA-Net++ (You, Xie, Zhang: "ISTA-Net++: Flexible Deep Unfolding Network for Compressive Sensing", ICME 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs_models.networks.unfolding.module import UnfoldingModule, UnfoldingTraining
from cs_models.networks.unfolding.recursion import Problem, UnfoldingNetwork, check_schedule, iterations
from cs_models.numerics import as_dtype
from cs_models.precision import no_tf32
from cs_models.settings import check_network_size


@dataclass(frozen=True)
class ISTANetPPConfig:
    """Architecture of ISTA-Net++; the switches are the ablations of the paper's Table 4.

    Attributes:
        layers: stages K.
        features: channels of the convolutions.
        iterations_per_layer: how often each stage is applied; once where it is not given.
        cross_block: convolutions on the whole image; off, they see isolated blocks (ablation a).
        condition: what the condition module gives: "both" step sizes and noise levels (e), "step" (c), "sigma"
            (d), or "none" (a, b). Step sizes that it does not give are learned for each stage.
    """

    layers: int = 20
    features: int = 32
    iterations_per_layer: tuple[int, ...] | None = None
    cross_block: bool = True
    condition: Literal["both", "step", "sigma", "none"] = "both"

    def __post_init__(self) -> None:
        check_network_size(self.layers, self.features)


class ConditionModule(nn.Module):
    """Step sizes and noise levels of all stages from the CS ratio (Eq. 7 of the paper)."""

    def __init__(self, outputs: int, features: int = 32) -> None:
        """
        Args:
            outputs: how many positive numbers the module gives.
            features: width of the hidden layers.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, features),
            nn.ReLU(),
            nn.Linear(features, features),
            nn.ReLU(),
            nn.Linear(features, outputs),
            nn.Softplus(),
        )

    def forward(self, ratio: float) -> Tensor:
        """Positive numbers ``(outputs,)`` for a nominal ratio in (0, 1]."""
        return self.layers(next(self.parameters()).new_full((1,), ratio))


class ResidualBlock(nn.Module):
    """``h + conv(relu(conv(h)))``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.relu(self.conv1(h), inplace=True))


class Stage(nn.Module):
    """The proximal network of one stage: a residual network on the gradient step and the noise level."""

    def __init__(self, features: int, with_sigma: bool, with_step_size: bool) -> None:
        super().__init__()
        self.head = nn.Conv2d(2 if with_sigma else 1, features, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(features), ResidualBlock(features))
        self.tail = nn.Conv2d(features, 1, 3, padding=1)
        self.step_size = nn.Parameter(torch.tensor(0.5)) if with_step_size else None

    def forward(self, r: Tensor, sigma: Tensor | None) -> Tensor:
        """Refine the gradient step r ``(N, 1, H, W)``; sigma is a scalar tensor."""
        inputs = r if sigma is None else torch.cat([r, as_dtype(sigma, r.dtype).expand_as(r)], dim=1)
        return r + self.tail(self.blocks(self.head(inputs)))


class ISTANetPP(UnfoldingNetwork):
    """The network: one set of weights for every ratio and every matrix."""

    def __init__(self, config: ISTANetPPConfig = ISTANetPPConfig()) -> None:
        super().__init__()
        self.with_step = config.condition in ("both", "step")
        self.with_sigma = config.condition in ("both", "sigma")
        self.domain = "padded" if config.cross_block else "blocks"
        self.layers = nn.ModuleList(
            Stage(config.features, self.with_sigma, not self.with_step) for _ in range(config.layers)
        )
        self.iterations_per_layer = check_schedule(config.iterations_per_layer or (1,) * config.layers, config.layers)
        groups = int(self.with_step) + int(self.with_sigma)
        self.condition = ConditionModule(groups * config.layers) if groups else None

    def conditions(self, problem: Problem, schedule: tuple[int, ...]) -> list[Tensor]:
        """Of each iteration the numbers ``(groups,)`` of its stage: step size, noise level, or both."""
        if self.condition is None:
            return super().conditions(problem, schedule)
        # Step sizes enter the data consistency, so they stay in float32.
        with torch.autocast(problem.aty.device.type, enabled=False), no_tf32():
            numbers = self.condition(problem.ratio).view(-1, len(self.layers)).T
        return [numbers[step.layer] for step in iterations(schedule)]

    def iteration(self, x: Tensor, layer: nn.Module, condition: Tensor, problem: Problem) -> Tensor:
        assert isinstance(layer, Stage)
        step_size = condition[0] if layer.step_size is None else layer.step_size
        r = problem.gradient_step(x, step_size)
        return layer(r, condition[-1] if self.with_sigma else None)


class ISTANetPPModule(UnfoldingModule):
    """ISTA-Net++ for training: mean squared error of the last stage (Eq. 8)."""

    name = "ista_net_pp"
    config_class = ISTANetPPConfig

    def __init__(
        self, network: ISTANetPPConfig = ISTANetPPConfig(), training: UnfoldingTraining = UnfoldingTraining()
    ) -> None:
        """
        Args:
            network: architecture.
            training: sampling, loss, optimiser, schedule.
        """
        super().__init__(ISTANetPP(network), network, training)
