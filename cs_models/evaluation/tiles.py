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
from cs_models.evaluation.memory import PeakMemory
from cs_models.evaluation.options import Execution
from cs_models.numerics import relative
from cs_models.operators import BlockOperator, ColumnOperator, MeasurementOperator
from cs_models.reconstruction import Reconstructor, Solution

TRIAL_TILE = 396  # pixels; here the image takes more memory than matrices and weights do


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
        least = smallest_tile(operator, self.overlap)
        if self.size < least:
            raise UserError(f"--tile {self.size} leaves nothing between margins of {self.overlap}; at least {least}")

    def fit(self, reconstructor: Reconstructor, y: Tensor, operator: MeasurementOperator) -> Tiling:
        """Itself: the size was given."""
        return self

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


@dataclass(frozen=True)
class TileMemory:
    """Tiles as large as a limit on memory allows.

    Attributes:
        gigabytes: what the tensors of a tile's reconstruction may take together at any time, 10^9 bytes each. The
            image, its measurements, and the program itself come on top.
        overlap: see `Tiling`.
    """

    gigabytes: float
    overlap: int

    def check(self, operator: MeasurementOperator) -> None:
        """Find out whether the images of an operator can be cut.

        Raises:
            UserError: if the operator mixes pixels from all over the image.
        """
        smallest_tile(operator, self.overlap)

    def fit(self, reconstructor: Reconstructor, y: Tensor, operator: MeasurementOperator) -> Tiling:
        """Tiles as large as the limit allows, judged by what a trial tile takes for each of its pixels.

        Larger tiles take less for each, because matrices and copies of weights do not grow with them. Where the tiles
        must be smaller than the trial one, the trial is repeated at their size.

        Args:
            reconstructor: the method.
            y: measurements of the whole image, from which the trial tile is taken.
            operator: of the whole image.

        Raises:
            UserError: if even the smallest tile takes more than the limit, or the image cannot be cut.
        """
        height, width = operator.image_size
        by_columns = isinstance(operator, ColumnOperator)
        unit = _units(operator)[1]
        least = smallest_tile(operator, self.overlap)
        limit, trial = self.gigabytes * 1e9, max(least, TRIAL_TILE)
        while True:
            _, _, part, part_y = next(_tiles(y, operator, Tiling(trial, 0)))
            with PeakMemory() as memory:
                reconstructor.solve(part_y, part)
            pixels = limit / memory.peak * math.prod(part.padded().image_size)
            side = pixels / height if by_columns else math.sqrt(pixels)
            size = int(min(side, max(height, width) + unit)) // unit * unit
            if memory.peak <= limit:
                return Tiling(max(size, trial), self.overlap)
            if trial == least:
                raise UserError(
                    f"--tile_memory {self.gigabytes:g}: the smallest tile, {least} wide with margins of "
                    f"{self.overlap}, takes {memory.peak / 1e9:.2g} GB; allow as much, or lower --overlap"
                )
            trial = max(least, size)


def wanted_tiling(execution: Execution) -> Tiling | TileMemory | None:
    """How large images are cut; None where they are not."""
    if execution.tile is not None:
        return Tiling(execution.tile, execution.overlap)
    return None if execution.tile_memory is None else TileMemory(execution.tile_memory, execution.overlap)


def smallest_tile(operator: MeasurementOperator, overlap: int) -> int:
    """Side in pixels of the smallest tile that is not all margin.

    Raises:
        UserError: if the operator mixes pixels from all over the image.
    """
    if not isinstance(operator, BlockOperator | ColumnOperator):
        kind = operator.spec["kind"]
        raise UserError(f"tiles need an operator of blocks or columns; '{kind}' measures the image as a whole")
    unit = _units(operator)[1]
    return unit * (1 + 2 * math.ceil(overlap / unit))


def solve_in_tiles(reconstructor: Reconstructor, y: Tensor, operator: MeasurementOperator, tiling: Tiling) -> Solution:
    """What ``reconstructor.solve(y, operator)`` gives, tile by tile.

    Iterations are those of the slowest tile, an image has converged if all its tiles have, and the residual is that of
    the assembled image.

    Raises:
        UserError: if the images of the operator cannot be cut, or the method cannot work with it.
    """
    tiling.check(operator)
    x = torch.empty(*y.shape[:2], *operator.image_size, device=y.device)
    iterations, converged, residuals = [], [], []  # the tiles' images would add up to the memory of the whole
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
        iterations.append(solution.iterations)
        converged.append(solution.converged)
        residuals.append(solution.residual)
    residual = None
    if residuals[0] is not None:
        residual = relative(operator(x) - y, y)
    counts = [each for each in iterations if each is not None]
    reached = [each for each in converged if each is not None]
    return Solution(
        x, torch.stack(counts).amax(0) if counts else None, residual, torch.stack(reached).all(0) if reached else None
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
