"""ISTA-Net, ISTA-Net+ and RISTA-Net+, for block sampling and for MRI.

ISTA-Net(+): Zhang, Ghanem, "ISTA-Net: Interpretable Optimization-Inspired Deep Network for Image Compressive
Sensing", CVPR 2018. RISTA-Net+: "Recursions Are All You Need: Towards Efficient Deep Unfolding Networks", 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.networks.unfolding.modulation import RFMU, channel_gains
from cs_models.networks.unfolding.module import UnfoldingModule, UnfoldingTraining
from cs_models.networks.unfolding.one_matrix import OneMatrixModule
from cs_models.networks.unfolding.recursion import Problem, UnfoldingNetwork, check_schedule
from cs_models.numerics import as_dtype
from cs_models.operators import BlockOperator, MeasurementOperator
from cs_models.operators.matrices import rows_for_ratio
from cs_models.precision import no_tf32
from cs_models.settings import check_network_size, check_range
from cs_models.solvers.linear import linear_estimator


@dataclass(frozen=True)
class ISTANetConfig:
    """Architecture of the ISTA-Net family.

    Attributes:
        variant: "plus" (ISTA-Net+, with D, G and the skip) or "basic" (ISTA-Net).
        layers: phases.
        features: channels of the convolutions.
        iterations_per_layer: how often each phase is applied; once where it is not given.
        modulation: "rfmu" scales the features after D and before G by two recursive units (RISTA-Net+); it
            needs the "plus" variant.
        start: "linear" starts from ``Q_init y``, the linear estimate of least mean squared error over the
            training blocks, and fixes the sampling matrix; "adjoint" from ``A^T y`` (MRI).
        rows: M of a matrix that does not come from training here (released weights); where it is not given, the
            rule's number for the ratio.
    """

    variant: Literal["basic", "plus"] = "plus"
    layers: int = 9
    features: int = 32
    iterations_per_layer: tuple[int, ...] | None = None
    modulation: Literal["none", "rfmu"] = "none"
    start: Literal["linear", "adjoint"] = "linear"
    rows: int | None = None

    def __post_init__(self) -> None:
        check_network_size(self.layers, self.features)
        check_range("rows", self.rows, 0, 2**20)
        if self.modulation == "rfmu" and self.variant == "basic":
            raise UserError("modulation 'rfmu' scales the features after D, which variant 'basic' lacks; use 'plus'")


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution of the family: no bias, weights as in the papers' code."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.xavier_normal_(layer.weight)
    return layer


def shrink(s: Tensor, threshold: Tensor) -> Tensor:
    """``sign(s) max(|s| - threshold, 0)`` (Eq. 11); trained thresholds can be negative, and then it expands.

    The threshold is a scalar, or broadcasts to s.
    """
    plain = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    if plain and s.device.type == "cpu" and threshold.ndim == 0:
        # Fewer passes over memory. On other devices reading the threshold would wait for them.
        level = float(threshold)
        if level < 0:  # |s| - threshold is positive everywhere
            return torch.sub(s, torch.sign(s), alpha=level)
        return F.softshrink(s, level)
    return torch.sign(s) * F.relu(s.abs() - threshold)


class Phase(nn.Module):
    """One phase: sparsify by F, shrink softly, return by F~ (Eq. 8-13 of the paper)."""

    def __init__(self, features: int, plus: bool, outer: int | None = None) -> None:
        """
        Args:
            features: channels of the convolutions.
            plus: whether D, G and the skip are there.
            outer: channels of what F sparsifies; one without D.
        """
        super().__init__()
        self.step_size = nn.Parameter(torch.tensor(0.5))
        self.threshold = nn.Parameter(torch.tensor(0.01))
        outer = outer or (features if plus else 1)
        self.extract = conv(1, features) if plus else None
        self.forward1 = conv(outer, features)
        self.forward2 = conv(features, features)
        self.backward1 = conv(features, features)
        self.backward2 = conv(features, outer)
        self.gather: nn.Module | None = conv(features, 1) if plus else None

    def sparsify(self, d: Tensor) -> Tensor:
        """F."""
        return self.forward2(F.relu(self.forward1(d), inplace=True))

    def level(self, s: Tensor) -> Tensor:
        """What coefficients s are shrunk by."""
        return as_dtype(self.threshold, s.dtype)

    def restore(self, s: Tensor) -> Tensor:
        """F~, trained towards the left inverse of F."""
        return self.backward2(F.relu(self.backward1(s), inplace=True))

    def forward(self, r: Tensor, gains: Tensor | None, symmetric: bool = False) -> tuple[Tensor, Tensor | None]:
        """Refine the gradient step r ``(N, 1, H, W)``.

        Args:
            r: gradient step.
            gains: gains ``(2, C)`` of the features after D and before G, or None.
            symmetric: whether the symmetry residual is wanted, which costs a third of the phase.

        Returns:
            the estimate x, and the mean square of the symmetry residual ``F~ F d - d``, or None.
        """
        d = r if self.extract is None else self.extract(r)
        if gains is not None:
            d = d * as_dtype(channel_gains(gains[0]), d.dtype)
        s = self.sparsify(d)
        restored = self.restore(shrink(s, self.level(s)))
        if gains is not None:
            restored = restored * as_dtype(channel_gains(gains[1]), restored.dtype)
        x = restored if self.gather is None else r + self.gather(restored)
        return x, (self.restore(s) - d).float().square().mean() if symmetric else None


class ISTANet(UnfoldingNetwork):
    """The network. It is trained for one matrix: with `start` "linear" it holds that matrix's ``Q_init``."""

    phase_class: type[Phase] = Phase
    q_init: Tensor

    def __init__(self, config: ISTANetConfig = ISTANetConfig(), rows: int = 0, n: int = 0) -> None:
        """
        Args:
            config: architecture.
            rows: M of the matrix, for ``Q_init`` ``(n, M)``.
            n: pixels of a block.
        """
        super().__init__()
        self.domain = "blocks"
        self.start = config.start
        plus = config.variant == "plus"
        self.layers = nn.ModuleList(self.phase_class(config.features, plus) for _ in range(config.layers))
        self.iterations_per_layer = check_schedule(config.iterations_per_layer or (1,) * config.layers, config.layers)
        total = sum(self.iterations_per_layer)
        units = 2 if config.modulation == "rfmu" else 0
        self.modulation = nn.ModuleList(RFMU(config.features, total, with_ratio=False) for _ in range(units))
        self.of_one_matrix: tuple[str, ...] = ()
        if config.start == "linear":
            self.register_buffer("q_init", torch.zeros(n, rows))
            self.of_one_matrix = ("q_init",)

    def initial(self, problem: Problem) -> Tensor:
        if self.start == "adjoint":
            return problem.aty
        with torch.autocast(problem.y.device.type, enabled=False), no_tf32():
            pixels = problem.y @ self.q_init.to(problem.y.dtype).T
        return pixels.reshape(problem.aty.shape)

    def conditions(self, problem: Problem, schedule: tuple[int, ...]) -> list[Tensor]:
        """Gains ``(2, C)`` of each iteration; empty without modulation."""
        if not self.modulation:
            return super().conditions(problem, schedule)
        units = [unit(problem.ratio, sum(schedule)) for unit in self.modulation]
        return list(torch.stack(units, dim=1))

    def iteration(self, x: Tensor, layer: nn.Module, condition: Tensor, problem: Problem) -> Tensor:
        assert isinstance(layer, Phase)
        r = problem.gradient_step(x, layer.step_size)
        # The residual has no part in the reconstruction.
        x, residual = layer(r, condition if self.modulation else None, symmetric=self.training)
        problem.penalties += [] if residual is None else [residual]
        return x


class ISTANetModule(OneMatrixModule):
    """The ISTA-Net family for training: squared error of the last phase + 0.01 x symmetry residuals (Eq. 14).

    One network serves one matrix, which the checkpoint carries; ``Q_init`` is estimated from training patches
    when training starts.
    """

    name = "ista_net"
    title = "ISTA-Net"
    imported_with = "--phi and --qinit"
    config_class = ISTANetConfig
    symmetry_weight = 0.01
    patches_for_start = 20_000

    def __init__(
        self, network: ISTANetConfig = ISTANetConfig(), training: UnfoldingTraining = UnfoldingTraining()
    ) -> None:
        """
        Args:
            network: architecture.
            training: sampling, loss, optimiser, schedule.

        Raises:
            UserError: if the sampling has several ratios or matrices.
        """
        sampling = training.sampling
        if network.start == "linear" and sampling.kind != "block":
            raise UserError(f"start 'linear' needs block sampling, not '{sampling.kind}'; use start 'adjoint'")
        n = sampling.block_size**2
        rows = network.rows or rows_for_ratio(sampling.ratios[0], n)
        super().__init__(ISTANet(network, rows, n), network, training)
        if network.start == "linear" and network.rows is None:
            self.carried.add_matrix(self.bank.matrix(sampling.ratios[0]))

    def check_operator(self, operator: MeasurementOperator) -> None:
        if self.config.start == "adjoint":
            if isinstance(operator, BlockOperator):
                raise UserError("this ISTA-Net+ was trained for MRI; it takes Fourier sampling, not blocks")
            return
        super().check_operator(operator)

    def default_operator(
        self, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> MeasurementOperator:
        if self.config.start == "adjoint":
            return UnfoldingModule.default_operator(self, ratio, image_size, seed, noise_sigma)
        return super().default_operator(ratio, image_size, seed, noise_sigma)

    def prepare(self, patches: Callable[[int, int], Tensor]) -> None:
        """Estimate ``Q_init`` from training patches, unless a resumed training or `start_from` brought one."""
        network, averaged = self.network, self.evaluated_network
        assert isinstance(network, ISTANet)
        assert isinstance(averaged, ISTANet)
        if self.config.start == "adjoint" or bool(network.q_init.any()):
            return
        sampling = self.training_options.sampling
        size = sampling.block_size
        pixels = patches(self.patches_for_start, sampling.seed)[..., :size, :size].double() / 255
        blocks = rearrange(pixels, "k c h w -> (k c) (h w)")
        estimate = linear_estimator(next(self.carried.buffers()).cpu(), blocks.T @ blocks / len(blocks))
        network.q_init.copy_(estimate)
        averaged.q_init.copy_(estimate)

    def training_loss(
        self,
        x: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        run = self.training_run(y, operator, step)
        return self.error(run, x) + self.symmetry_weight * torch.stack(run.penalties).sum()
