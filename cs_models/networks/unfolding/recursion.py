"""Unfolding as a schedule: how often each layer is applied, and the loop that applies it.

The framework of "Recursions Are All You Need": layer k of a network is applied R_k times in a row before layer
k + 1 takes over. R_k = 1 everywhere is the plain network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.numerics import as_dtype
from cs_models.operators.bank import mix
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.operators.block import BlockOperator
from cs_models.settings import check_range

# Papers go to 20; of what a number may be mistyped to, this still ends within a day.
MOST_ITERATIONS = 100_000


@dataclass(frozen=True)
class Iteration:
    """One application of one layer.

    Attributes:
        layer: index of the layer, from 0.
        current: number of this iteration over the whole network, from 1.
        total: iterations that this run makes in all.
    """

    layer: int
    current: int
    total: int


def check_schedule(iterations_per_layer: Sequence[int], layers: int) -> tuple[int, ...]:
    """The schedule as a tuple.

    Raises:
        UserError: unless it names one positive count for each layer.
    """
    schedule = tuple(iterations_per_layer)
    if len(schedule) != layers:
        raise UserError(
            f"iterations_per_layer {list(schedule)} names {len(schedule)} layers; this network has {layers}"
        )
    if any(count < 1 for count in schedule):
        raise UserError(f"iterations_per_layer {list(schedule)}: every layer needs at least 1 iteration")
    check_range("the sum of iterations_per_layer", sum(schedule), 1, MOST_ITERATIONS)
    return schedule


def draw_schedule(largest: Sequence[int], seed: int, step: int) -> tuple[int, ...]:
    """A random schedule: each layer's count independent and uniform in ``1..R_k``.

    It depends only on (seed, step): the same on every rank, and after a resume.
    """
    generator = torch.Generator().manual_seed(mix(seed, step, 1))
    return tuple(int(torch.randint(1, count + 1, (), generator=generator)) for count in largest)


def iterations(schedule: Sequence[int]) -> Iterator[Iteration]:
    """The iterations of a schedule in order."""
    total, current = sum(schedule), 0
    for layer, count in enumerate(schedule):
        for _ in range(count):
            current += 1
            yield Iteration(layer, current, total)


@dataclass
class Problem:
    """What an unfolding network iterates on: (y, A) moved to the domain of its convolutions.

    Attributes:
        y: measurements ``(N, 1, ...)`` of `operator`.
        operator: A on the domain, whose images are whole blocks.
        aty: ``A^T y``, computed once.
        cropped_to: (H, W) that the convolutions see where the padding is cut off for them; None where they see it.
        ratio: nominal CS ratio.
        measured_ratio: M / N.
        penalties: terms that layers add to the training loss.
    """

    y: Tensor
    operator: MeasurementOperator
    aty: Tensor
    cropped_to: tuple[int, int] | None
    ratio: float
    measured_ratio: float
    penalties: list[Tensor] = field(default_factory=list)

    def gradient_step(self, x: Tensor, step_size: Tensor | float) -> Tensor:
        """``x - rho A^T (A x - y)``, in float32 even under autocast: it is precision-critical.

        Estimates that were cropped are padded with zeros again; the start ``A^T y`` still has its padding.
        """
        x = as_dtype(x, self.aty.dtype)
        if self.cropped_to is not None:
            rows, columns = (full - own for full, own in zip(self.aty.shape[-2:], x.shape[-2:], strict=True))
            x = F.pad(x, (0, columns, 0, rows))
        if isinstance(step_size, Tensor):
            step_size = as_dtype(step_size, x.dtype)
        r = x - step_size * (self.operator.normal(x) - self.aty)
        if self.cropped_to is None:
            return r
        height, width = self.cropped_to
        return r.narrow(-2, 0, height).narrow(-1, 0, width)

    def step_of_first_channel(self, features: Tensor, step_size: Tensor | float) -> Tensor:
        """Features ``(N, C, H, W)`` whose first channel is the estimate, after `gradient_step` on that alone."""
        r = self.gradient_step(features.narrow(1, 0, 1), step_size)
        return torch.cat([as_dtype(r, features.dtype), features.narrow(1, 1, features.shape[1] - 1)], dim=1)


@dataclass(frozen=True)
class Unfolded:
    """The result of a run.

    Attributes:
        iterates: ``(N, 1, H, W)`` after each iteration, or after the last one only.
        penalties: terms that layers add to the training loss.
    """

    iterates: list[Tensor]
    penalties: list[Tensor]


class UnfoldingNetwork(nn.Module):
    """A network whose layers alternate a gradient step on ``|A x - y|^2 / 2`` and a learned proximal step.

    Subclasses set `layers` and `iterations_per_layer` and implement `iteration`. What travels from iteration to
    iteration is the estimate of the image, or features ``(N, C, H, W)`` that `initial` starts and `estimate` ends.

    Attributes:
        domain: where the convolutions work. "blocks": on isolated B x B blocks; "padded": on the image that is
            zero-padded to whole blocks; "image": on the image itself, which is cropped after every gradient step
            (COAST's plug-and-play deblocking). Operators without blocks are always worked on as images.
    """

    layers: nn.ModuleList
    iterations_per_layer: tuple[int, ...]
    domain: str = "padded"

    def initial(self, problem: Problem) -> Tensor:
        """What enters the first iteration; ``A^T y`` unless a subclass says otherwise."""
        return problem.aty

    def conditions(self, problem: Problem, schedule: tuple[int, ...]) -> list[Tensor]:
        """Conditioning of each iteration, computed before the loop; by default none."""
        return [problem.aty.new_zeros(0)] * sum(schedule)

    def iteration(self, x: Tensor, layer: nn.Module, condition: Tensor, problem: Problem) -> Tensor:
        """One application of a layer, under its condition, to what came before; each network has its own."""
        raise NotImplementedError

    def estimate(self, state: Tensor, problem: Problem) -> Tensor:
        """The image ``(N, 1, H, W)`` of what an iteration gave; by default that itself."""
        return state

    def unfold(
        self,
        y: Tensor,
        operator: MeasurementOperator,
        iterations_per_layer: Sequence[int] | None = None,
        keep_all: bool = False,
    ) -> Unfolded:
        """Run the network.

        Args:
            y: measurements ``(N, 1, ...)`` of one-channel images.
            operator: A.
            iterations_per_layer: another schedule than the network's own.
            keep_all: whether every iterate is kept.
        """
        schedule = check_schedule(iterations_per_layer or self.iterations_per_layer, len(self.layers))
        domain_operator, domain_y = operator.padded(), y
        blocks = operator if self.domain == "blocks" and isinstance(operator, BlockOperator) else None
        if blocks is not None:
            domain_operator = blocks.resized(blocks.block_size, blocks.block_size).padded()
            domain_y = rearrange(y, "n c l m -> (n l) c 1 m")
        problem = Problem(
            y=domain_y,
            operator=domain_operator,
            aty=domain_operator.adjoint(domain_y),
            cropped_to=operator.image_size if self.domain == "image" else None,
            ratio=operator.ratio,
            measured_ratio=_measured_ratio(operator),
        )
        conditions = self.conditions(problem, schedule)
        x = self.initial(problem)
        iterates = []
        for step, condition in zip(iterations(schedule), conditions, strict=True):
            x = self.iteration(x, self.layers[step.layer], condition, problem)
            if keep_all or step.current == step.total:
                image = self.estimate(x, problem)
                iterates.append(operator.crop(image if blocks is None else _assembled(image, blocks)))
        return Unfolded(iterates, problem.penalties)

    def forward(
        self, y: Tensor, operator: MeasurementOperator, iterations_per_layer: Sequence[int] | None = None
    ) -> Tensor:
        """The reconstruction ``(N, 1, H, W)``."""
        return self.unfold(y, operator, iterations_per_layer).iterates[-1]


def _measured_ratio(operator: MeasurementOperator) -> float:
    if isinstance(operator, MatrixOperator):
        return operator.matrix.shape[0] / operator.matrix.shape[1]
    return operator.ratio


def _assembled(x: Tensor, operator: BlockOperator) -> Tensor:
    """Isolated blocks ``(N L, C, B, B)`` as the padded images that they are cut from."""
    rows, columns = operator.grid
    return rearrange(x, "(n h w) c p q -> n c (h p) (w q)", h=rows, w=columns)
