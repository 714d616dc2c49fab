"""A trained network with its sampling as two graphs, free of this package: measure, and reconstruct."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from cs_models.errors import UserError
from cs_models.networks.unfolding.module import UnfoldingModule
from cs_models.networks.unfolding.recursion import UnfoldingNetwork
from cs_models.operators.block import BlockOperator
from cs_models.operators.unsized import UnsizedBlocks
from cs_models.training.module import ReconstructionModule

# Sides of images that graphs reckon with; any limit keeps torch from expecting the impossible.
LARGEST_SIDE = 2**20


class Measure(nn.Module):
    """``y = A x``: images ``(N, 1, H, W)`` in [0, 1] to measurements ``(N, 1, L, M)``, blocks row by row."""

    matrix: Tensor

    def __init__(self, operator: BlockOperator) -> None:
        super().__init__()
        self.register_buffer("matrix", _own(operator.matrix))
        self.block_size, self.ratio = operator.block_size, operator.ratio

    def forward(self, x: Tensor) -> Tensor:
        """Measurements of images of any size, padded with zeros to whole blocks."""
        height, width = x.shape[-2:]
        return UnsizedBlocks(self.matrix, (height, width), self.block_size, self.ratio)(x)


class Reconstruct(nn.Module):
    """Measurements ``(N, 1, L, M)`` and the image's (H, W) to images ``(N, 1, H, W)``, which are not clipped."""

    network: UnfoldingNetwork
    matrix: Tensor
    preparation: Tensor | None

    def __init__(self, module: UnfoldingModule, operator: BlockOperator) -> None:
        super().__init__()
        self.network, self.schedule = cast(UnfoldingNetwork, module.evaluated_network), module.schedule
        self.block_size, self.ratio = operator.block_size, operator.ratio
        # What the framework does to measurements first is linear, so that it is known by what it does to unit vectors.
        identity = torch.eye(len(operator.matrix))[None, None]
        changed, prepared = module.prepared(identity, operator)
        assert isinstance(prepared, BlockOperator)
        self.register_buffer("matrix", _own(prepared.matrix))
        self.register_buffer("preparation", None if prepared is operator else changed[0, 0])

    def forward(self, y: Tensor, size: Tensor) -> Tensor:
        """Images whose height and width are the two integers of `size`."""
        if self.preparation is not None:
            y = y @ self.preparation
        return unfold(self.network, self.schedule, y, size, self.matrix, self.block_size, self.ratio)


class ReconstructAny(nn.Module):
    """As `Reconstruct`, for any matrix ``(M, B^2)`` with orthonormal rows, which is given along with its ratio."""

    def __init__(self, module: UnfoldingModule, block_size: int) -> None:
        super().__init__()
        self.network, self.schedule = cast(UnfoldingNetwork, module.evaluated_network), module.schedule
        self.block_size = block_size

    def forward(self, y: Tensor, size: Tensor, matrix: Tensor, ratio: Tensor) -> Tensor:
        """Images whose height and width are the two integers of `size`; `ratio` is one number."""
        return unfold(self.network, self.schedule, y, size, matrix, self.block_size, cast(float, ratio.item()))


def _own(matrix: Tensor) -> Tensor:
    """A copy: of the first rows of a larger matrix, a file would hold the whole."""
    return matrix.clone(memory_format=torch.contiguous_format)


def unfold(
    network: UnfoldingNetwork,
    schedule: tuple[int, ...],
    y: Tensor,
    size: Tensor,
    matrix: Tensor,
    block_size: int,
    ratio: float,
) -> Tensor:
    """Run a network on measurements of images whose size is data: two integers that a graph reads when it runs."""
    height, width = size.tolist()
    for side in (height, width):
        torch._check(side >= 2)
        torch._check(side <= LARGEST_SIDE)
    operator = UnsizedBlocks(matrix, (height, width), block_size, ratio)
    torch._check(operator.grid[0] * operator.grid[1] == y.shape[2])
    return network.unfold(y, operator, schedule).iterates[-1]


@dataclass(frozen=True)
class Graphs:
    """The two graphs of a network at one ratio, in float32, for any number of images of any size.

    Attributes:
        measure: see `Measure`.
        reconstruct: see `Reconstruct`.
    """

    measure: ExportedProgram
    reconstruct: ExportedProgram


def check_exportable(module: ReconstructionModule, operator: object, name: str) -> None:
    """Refuse what cannot be written as graphs.

    Args:
        module: the network.
        operator: what is measured.
        name: what to call the network.

    Raises:
        UserError: unless it is an unfolding network with block sampling that it can reconstruct from.
    """
    if not isinstance(module, UnfoldingModule):
        raise UserError(
            f"'{name}' cannot be exported: it is no unfolding network, as r_coast, scnet and ista_net_pp are"
        )
    if not isinstance(operator, BlockOperator):
        raise UserError(
            f"'{name}' cannot be exported with {type(operator).__name__}; graphs are for block sampling alone"
        )
    module.check_operator(operator)


@torch.no_grad()
def trace(module: UnfoldingModule, operator: BlockOperator) -> Graphs:
    """Trace a network, with the matrix of an operator of any image size; see `check_exportable`."""
    block = operator.block_size
    size = (block + 3, 2 * block + 5)  # nothing in it is special: six blocks, no side a multiple of B
    sampling = cast(BlockOperator, operator.resized(*size))
    x = torch.zeros(2, 1, *size)
    y = sampling(x)
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # Otherwise torch lets the graph refuse images that are one block high or wide, which are no special case here.
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        measure = torch.export.export(Measure(sampling).eval(), (x,), dynamic_shapes={"x": any_size})
    reconstruct = torch.export.export(
        Reconstruct(module, sampling).eval(),
        (y, torch.tensor(size)),
        dynamic_shapes={"y": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, "size": None},
    )
    return Graphs(measure, reconstruct)


@torch.no_grad()
def trace_any(module: UnfoldingModule, operator: BlockOperator) -> ExportedProgram:
    """Trace `ReconstructAny` for a network that takes matrices of the block size of an operator."""
    block = operator.block_size
    size = (block + 3, 2 * block + 5)
    y = operator.resized(*size)(torch.zeros(1, 1, *size))
    return torch.export.export(
        ReconstructAny(module, block).eval(),
        (y, torch.tensor(size), operator.matrix, torch.tensor(operator.ratio)),
        dynamic_shapes={
            "y": {2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
            "size": None,
            "matrix": {0: Dim.DYNAMIC},
            "ratio": None,
        },
    )
