"""Second moments of image blocks: what the linear estimate and principal components know of photographs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError
from cs_models.numerics import for_good
from cs_models.progress import Progress
from datamodules.catalog import load_set


@lru_cache(maxsize=4)
@for_good()
def second_moment(training_sets: tuple[str, ...], block_size: int, data_dir: str | Path | None = None) -> Tensor:
    """Mean of ``x x^T`` over the BxB luminance blocks of image sets, and over their flips and rotations.

    Args:
        training_sets: names of image sets or folders; every block of all of them counts the same.
        block_size: B.
        data_dir: where the sets are, see `datamodules.catalog.resolve_data_dir`.

    Returns:
        ``(B^2, B^2)`` in float64, for pixels in [0, 1], row by row inside a block.

    Raises:
        UserError: if a set is unknown or no image holds a block.
    """
    stride = max(1, block_size // 4)
    n = block_size**2
    total, count = torch.zeros(n, n, dtype=torch.float64), 0
    sets = [load_set(name, data_dir) for name in training_sets]
    with Progress(sum(map(len, sets)), "second moments", "images") as bar:
        for images in sets:
            for _, image in images:
                bar.update()
                if min(image.shape[-2:]) < block_size:
                    continue
                blocks = F.unfold(image[None], block_size, stride=stride)[0]
                total += (blocks @ blocks.T).double()
                count += blocks.shape[1]
    if count == 0:
        names = "', '".join(training_sets)
        raise UserError(f"no image of '{names}' is as large as a {block_size}x{block_size} block")
    return _average_over_flips(total / count, block_size)


def _average_over_flips(moment: Tensor, block_size: int) -> Tensor:
    moment = rearrange(moment, "(a b) (c d) -> a b c d", a=block_size, c=block_size)
    moment = (moment + moment.permute(1, 0, 3, 2)) / 2
    moment = (moment + moment.flip(0, 2)) / 2
    moment = (moment + moment.flip(1, 3)) / 2
    return rearrange(moment, "a b c d -> (a b) (c d)")
