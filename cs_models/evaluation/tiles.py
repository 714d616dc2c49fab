"""Large images piece by piece, so that memory depends on the piece and no longer on the image.

The measurements stay those of the whole image: a tile consists of whole blocks (or columns), and its reconstruction
starts from the measurements of just these. Tiles overlap by a margin that is thrown away, because near its border a
tile lacks the neighbours that the whole image has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators import BlockOperator, ColumnOperator, MeasurementOperator
from cs_models.reconstruction import Reconstructor, Solution


@dataclass(frozen=True)
class Span:
    """A stretch of blocks or columns ``[first, last)``, of which ``[keep_first, keep_last)`` goes into the image."""

    first: int
    last: int
    keep_first: int
    keep_last: int


@dataclass(frozen=True)
class Tiling:
    """How large images are cut.

    Attributes:
        size: largest side of a tile with its margins, in pixels; blocks are not cut.
        overlap: width of the margin on each inner side in pixels, rounded up to whole blocks.
    """

    size: int
    overlap: int

    def check(self, operator: MeasurementOperator) -> None:
        """Find out whether the images of an operator can be cut.

        Raises:
            UserError: if the operator mixes pixels from all over the image, or the tiles are all margin.
        """
        if not isinstance(operator, BlockOperator | ColumnOperator):
            kind = operator.spec["kind"]
            raise UserError(f"--tile needs an operator of blocks or columns; '{kind}' measures the image as a whole")
        side = operator.block_size if isinstance(operator, BlockOperator) else 1
        least = side * (1 + 2 * math.ceil(self.overlap / side))
        if self.size < least:
            raise UserError(f"--tile {self.size} leaves nothing between margins of {self.overlap}; at least {least}")

    def spans(self, count: int, unit: int) -> list[Span]:
        """Cut a row of `count` blocks of `unit` pixels; what is kept of the stretches fits together without gaps.

        All stretches are as long as `size` allows, so that none is a remainder with few neighbours to learn from.
        """
        size, margin = self.size // unit, math.ceil(self.overlap / unit)
        if count <= size:
            return [Span(0, count, 0, count)]
        pieces = math.ceil((count - 2 * margin) / (size - 2 * margin))
        firsts = [piece * (count - size) // (pieces - 1) for piece in range(pieces)]
        seams = [(first + size + following) // 2 for first, following in pairwise(firsts)]
        return [
            Span(first, first + size, start, end)
            for first, start, end in zip(firsts, [0, *seams], [*seams, count], strict=True)
        ]


def solve_in_tiles(reconstructor: Reconstructor, y: Tensor, operator: MeasurementOperator, tiling: Tiling) -> Solution:
    """What ``reconstructor.solve(y, operator)`` gives, tile by tile.

    Iterations are those of the slowest tile, an image has converged if all its tiles have, and the residual is that of
    the assembled image.

    Raises:
        UserError: if the images of the operator cannot be cut, or the method cannot work with it.
    """
    tiling.check(operator)
    x = torch.empty(*y.shape[:2], *operator.image_size, device=y.device)
    solutions = []
    for rows, columns, part, part_y in _tiles(y, operator, tiling):
        solution = reconstructor.solve(part_y, part)
        unit_rows, unit_columns = _units(operator)
        top, left = rows.keep_first * unit_rows, columns.keep_first * unit_columns
        inside = solution.x[
            ...,
            top - rows.first * unit_rows : (rows.keep_last - rows.first) * unit_rows,
            left - columns.first * unit_columns : (columns.keep_last - columns.first) * unit_columns,
        ]
        x[..., top : top + inside.shape[-2], left : left + inside.shape[-1]] = inside
        solutions.append(solution)
    iterations = [solution.iterations for solution in solutions if solution.iterations is not None]
    converged = [solution.converged for solution in solutions if solution.converged is not None]
    residual = None
    if solutions[0].residual is not None:
        residual = (operator(x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    return Solution(
        x,
        torch.stack(iterations).amax(0) if iterations else None,
        residual,
        torch.stack(converged).all(0) if converged else None,
    )


def _units(operator: MeasurementOperator) -> tuple[int, int]:
    """Height and width in pixels of what is never cut."""
    if isinstance(operator, BlockOperator):
        return operator.block_size, operator.block_size
    return operator.image_size[0], 1


def _tiles(
    y: Tensor, operator: MeasurementOperator, tiling: Tiling
) -> Iterator[tuple[Span, Span, MeasurementOperator, Tensor]]:
    """Rows and columns of each tile in units, its operator, and its measurements."""
    height, width = operator.image_size
    unit_rows, unit_columns = _units(operator)
    grid = math.ceil(height / unit_rows), math.ceil(width / unit_columns)
    signals = rearrange(y, "n c (h w) m -> n c h w m", h=grid[0])
    every_row = [Span(0, 1, 0, 1)] if isinstance(operator, ColumnOperator) else tiling.spans(grid[0], unit_rows)
    for rows in every_row:
        for columns in tiling.spans(grid[1], unit_columns):
            size = (
                min(height, rows.last * unit_rows) - rows.first * unit_rows,
                min(width, columns.last * unit_columns) - columns.first * unit_columns,
            )
            part = signals[:, :, rows.first : rows.last, columns.first : columns.last]
            yield rows, columns, operator.resized(*size), rearrange(part, "n c h w m -> n c (h w) m")
