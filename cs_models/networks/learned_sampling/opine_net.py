"""OPINE-Net+: Zhang, Zhao, Gao, "Optimization-Inspired Compact Deep Compressive Sensing", IEEE JSTSP 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cs_models.networks.learned_sampling.network import LearnedSamplingModule, learned_ratio
from cs_models.networks.unfolding.ista_net import ISTANet, ISTANetConfig, Phase, conv
from cs_models.networks.unfolding.module import UnfoldingModule, UnfoldingTraining
from cs_models.operators import BlockOperator, MeasurementOperator
from cs_models.operators.learned import ScaledSigns
from cs_models.precision import no_tf32
from cs_models.settings import check_network_size, check_range


@dataclass(frozen=True)
class OPINENetConfig:
    """Architecture of OPINE-Net+; the defaults are the paper's.

    Attributes:
        layers: phases.
        features: channels of the convolutions.
        iterations_per_layer: how often each phase is applied; once where it is not given.
        modulation: "rfmu" scales the features after D and before G, as in RISTA-Net+.
        rows: M of the matrix where it does not follow from the ratio by the usual rule (released weights).
    """

    layers: int = 9
    features: int = 32
    iterations_per_layer: tuple[int, ...] | None = None
    modulation: Literal["none", "rfmu"] = "none"
    rows: int | None = None

    def __post_init__(self) -> None:
        check_network_size(self.layers, self.features)
        check_range("rows", self.rows, 0, 2**20)


class OPINEPhase(Phase):
    """A phase of ISTA-Net+ whose way back to the image has three convolutions."""

    def __init__(self, features: int, plus: bool = True) -> None:
        super().__init__(features, plus)
        self.gather = nn.Sequential(
            nn.ReLU(), conv(features, features), nn.ReLU(), conv(features, features), conv(features, 1)
        )


class OPINENet(ISTANet):
    """The network: ISTA-Net+ with other phases, on the padded image, from ``A^T y``, with the A that it learns."""

    phase_class = OPINEPhase

    def __init__(self, config: OPINENetConfig, ratio: float, block_size: int = 33, seed: int = 0) -> None:
        """
        Args:
            config: architecture.
            ratio: CS ratio.
            block_size: B.
            seed: of the sampling matrix's start.
        """
        super().__init__(
            ISTANetConfig(
                layers=config.layers,
                features=config.features,
                iterations_per_layer=config.iterations_per_layer,
                modulation=config.modulation,
                start="adjoint",
            )
        )
        self.domain = "padded"
        self.sampling = ScaledSigns(ratio, block_size, config.rows, seed=seed)


class OPINENetModule(LearnedSamplingModule, UnfoldingModule):
    """OPINE-Net+ for training: squared error + 0.01 x symmetry residuals + 0.01 x distance of ``A A^T`` from I."""

    name = "opine_net_plus"
    config_class = OPINENetConfig
    symmetry_weight = 0.01
    orthogonality_weight = 0.01
    network: OPINENet
    training_options: UnfoldingTraining

    def __init__(
        self, network: OPINENetConfig = OPINENetConfig(), training: UnfoldingTraining = UnfoldingTraining()
    ) -> None:
        """
        Args:
            network: architecture.
            training: sampling, loss, optimiser, schedule.

        Raises:
            UserError: if the sampling has several ratios, noise, or no blocks.
        """
        sampling = training.sampling
        ratio = learned_ratio(sampling, self.name)
        super().__init__(OPINENet(network, ratio, sampling.block_size, sampling.seed), network, training)

    def training_loss(
        self,
        x: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        assert isinstance(operator, BlockOperator)
        run = self.training_run(y, operator, step)
        symmetry = torch.stack(run.penalties).sum()
        penalty = self.symmetry_weight * symmetry + self.orthogonality_weight * distance_from_identity(operator.matrix)
        return self.error(run, x) + penalty


def distance_from_identity(matrix: Tensor) -> Tensor:
    """Mean square of ``A A^T - I`` for a matrix ``(M, n)``, in its own precision even under autocast."""
    with torch.autocast(matrix.device.type, enabled=False), no_tf32():
        return (matrix @ matrix.T - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)).square().mean()
