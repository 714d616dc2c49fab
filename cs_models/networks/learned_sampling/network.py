"""What networks with learned sampling share: an initial estimate, a trunk that refines it, and their training.

Both switches come from Chen et al., "Invertible Diffusion Models for Compressed Sensing", TPAMI 2025, Sec. 4.4 and
Table 6: injectors after every block of the trunk, and invertible wiring of the trunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.networks.injector import Injector
from cs_models.networks.invertible import Context, Wired, stabilise
from cs_models.operators import BlockOperator, MeasurementOperator, Sampling
from cs_models.operators.carried import same_matrix
from cs_models.operators.learned import LearnedBlocks
from cs_models.operators.remembered import Remembered
from cs_models.precision import full_precision
from cs_models.training.module import ReconstructionModule
from cs_models.training.options import Training


class Sensing(nn.Module):
    """Learned sampling A and the learned linear way back, which stands for ``A^+``.

    Attributes:
        sampling: A.
        back: maps measurements ``(N, M, h, w)`` of h x w blocks to images ``(N, 1, h B, w B)``, linearly.
    """

    def __init__(self, sampling: LearnedBlocks, back: nn.Module) -> None:
        super().__init__()
        self.sampling = sampling
        self.back = back

    @full_precision
    def initial(self, y: Tensor, operator: BlockOperator) -> Tensor:
        """The initial estimate ``A^+ y`` of whole blocks ``(N, 1, H, W)``, in float32 even under autocast."""
        estimate: Tensor = self.back(rearrange(y, "n 1 (h w) m -> n m h w", h=operator.grid[0]))
        return estimate

    def normal(self, x: Tensor) -> Tensor:
        """``A^+ A x`` of images of whole blocks ``(N, 1, H, W)``."""
        operator = BlockOperator(self.sampling.matrix(), (x.shape[-2], x.shape[-1]))
        return self.initial(operator(x), operator)


class Trunk(nn.Module):
    """Blocks in a row that keep the number of features, with an injector after each of them, and wired, if wanted."""

    def __init__(self, blocks: Sequence[nn.Module], features: int, injectors: bool, wired: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in blocks:
            layers.append(block)
            if injectors:
                layers.append(Injector(features, scale=1, steps=1))
        self.wired = Wired(layers) if wired else None
        self.plain = None if wired else nn.ModuleList(layers)

    @property
    def layers(self) -> nn.ModuleList:
        """Blocks and injectors in their order."""
        layers = self.plain if self.wired is None else self.wired.sequence.layers
        assert layers is not None
        return layers

    def forward(self, x: Tensor, sensing: Sensing, initial: Tensor) -> Tensor:
        """Refine features.

        Args:
            x: ``(N, C, H, W)``.
            sensing: what injectors see images through.
            initial: ``A^+ y``.
        """
        contexts: list[Context] = [
            (0, sensing, initial) if isinstance(layer, Injector) else () for layer in self.layers
        ]
        if self.wired is not None:
            return self.wired(x, contexts)
        for layer, context in zip(self.layers, contexts, strict=True):
            x = layer(x, *context)
        return x


class LearnedSamplingNetwork(nn.Module, ABC):
    """A network that reconstructs from its own sampling: an initial linear estimate and what refines it."""

    sensing: Sensing
    trunk: Trunk

    @abstractmethod
    def refine(self, initial: Tensor) -> Tensor:
        """The final from the initial estimate, both ``(N, 1, H, W)`` of whole blocks."""

    def estimates(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, Tensor]:
        """Final and initial estimate ``(N, 1, H, W)``.

        Args:
            y: measurements ``(N, 1, L, M)`` of one-channel images.
            operator: the network's own sampling, which measured.
        """
        assert isinstance(operator, BlockOperator)
        initial = self.sensing.initial(y, operator)
        return operator.crop(self.refine(initial)), operator.crop(initial)

    def forward(self, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """The reconstruction ``(N, 1, H, W)``."""
        return self.estimates(y, operator)[0]


class LearnedSamplingModule(ReconstructionModule):
    """A network with learned sampling for training; it works with its own operator only, at one ratio."""

    learns_rows = False  # its sampling is of its own kind
    any_operator = False

    def __init__(self, network: nn.Module, config: Any, training: Training) -> None:
        super().__init__(network, config, training)
        self._equal: Remembered[bool] = Remembered()
        if training.sampling.noise_sigma:
            raise UserError(f"{self.name} learns its sampling without noise; leave sampling.noise_sigma at 0")

    def compiled_parts(self) -> list[nn.Module]:
        """The blocks of the trunk, where there is one: training asks for both estimates and never calls the network."""
        if not isinstance(self.network, LearnedSamplingNetwork):
            return super().compiled_parts()
        return [layer for layer in self.network.trunk.layers if not isinstance(layer, Injector)]

    def training_operator(
        self, image_size: tuple[int, int], step: int = 0, device: torch.device | str = "cpu"
    ) -> MeasurementOperator:
        return learned_sampling(self.network).operator(image_size)

    def default_operator(
        self, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> MeasurementOperator:
        sampling = self._evaluated_sampling
        if abs(ratio - sampling.ratio) > 1e-6:
            raise UserError(f"this {self.name} learned its sampling for ratio {sampling.ratio:g} alone, not {ratio:g}")
        # The same tensor until training moves on, so that `check_operator` knows it again.
        matrix, source = sampling.fixed()
        return BlockOperator(matrix, image_size, ratio, noise_sigma, source)

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        """As they are: it works with the matrix that it was trained for."""
        return y, operator

    def check_operator(self, operator: MeasurementOperator) -> None:
        sampling = self._evaluated_sampling
        weights = tuple(sampling.parameters())
        if not (
            isinstance(operator, BlockOperator)
            and self._equal(
                (operator.matrix, *weights), lambda: same_matrix(operator.matrix, sampling.matrix().detach())
            )
        ):
            raise UserError(
                f"this {self.name} reconstructs from the sampling that it learned, which its checkpoint carries "
                f"(ratio {self._evaluated_sampling.ratio:g}); it takes no other operator"
            )

    @property
    def _evaluated_sampling(self) -> LearnedBlocks:
        return learned_sampling(self.evaluated_network)

    def constrain(self) -> None:
        learned_sampling(self.network).constrain()
        stabilise(self.network)


def learned_sampling(network: nn.Module) -> LearnedBlocks:
    """The part of a network that is its sampling."""
    return next(part for part in network.modules() if isinstance(part, LearnedBlocks))


def learned_ratio(sampling: Sampling, name: str) -> float:
    """The one ratio that a network learns its sampling for.

    Raises:
        UserError: if the sampling names several, no blocks or a matrix that is given.
    """
    if len(sampling.ratios) != 1 or sampling.kind != "block":
        raise UserError(
            f"{name} learns the sampling of blocks for one ratio: give one in sampling.ratios, and kind 'block'"
        )
    if sampling.matrices != "gaussian":
        raise UserError(
            f"{name} learns its sampling, so sampling.matrices '{sampling.matrices}' would change nothing; leave it out"
        )
    return sampling.ratios[0]


def conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
