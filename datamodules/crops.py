"""Crops of image sets: every position of every image has a number, and a batch is cut by one gather."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError
from cs_models.host_memory import check_memory
from datamodules.catalog import ImageFile
from datamodules.images import Channels

logger = logging.getLogger(__name__)

Augment = Literal["none", "flip_transpose", "dihedral"]

# Names of the independent random streams that one seed gives.
BATCH, POOL, STATISTICS = range(3)


class Crops:
    """Every square crop of a set of images, numbered, so that a batch of them is cut by one indexing operation.

    The images lie one after the other in one flat buffer of uint8.

    Attributes:
        size: side of the crops.
        count: how many crops there are: every position of every image that is large enough.
        paths: the files that are large enough.
    """

    def __init__(self, files: Sequence[ImageFile], size: int, channels: Channels = "luminance") -> None:
        """
        Args:
            files: the images. Those that are smaller than the crop are passed over, and the log says how many.
            size: side of the crops.
            channels: ``"luminance"`` or ``"rgb"``.

        Raises:
            UserError: where no image is large enough, or all of them do not fit into memory.
        """
        planes = 3 if channels == "rgb" else 1
        with ThreadPoolExecutor() as threads:  # Pillow decodes outside Python's lock
            sizes = list(threads.map(ImageFile.size, files))
            fits = [min(height_width) >= size for height_width in sizes]
            chosen = list(compress(files, fits))
            if not chosen:
                height, width = sizes[0]
                raise UserError(f"no training image holds a {size}x{size} crop; '{files[0].path}' is {height}x{width}")
            if len(chosen) < len(files):
                logger.warning(
                    "%d of %d training images are smaller than %d", len(files) - len(chosen), len(files), size
                )
            # The images one by one, and all of them in one buffer.
            pixels = sum(math.prod(height_width) for height_width in compress(sizes, fits))
            check_memory(2 * planes * pixels, f"the training set of {len(chosen)} images")
            large = list(threads.map(lambda file: file.read(channels), chosen))
        self.size = size
        self.paths = [str(file.path) for file in chosen]
        self._pixels = np.concatenate([image.reshape(-1, planes) for image in large])
        heights, widths = np.array([image.shape[:2] for image in large]).T
        self._widths = widths
        self._first_pixels = np.cumsum(heights * widths) - heights * widths
        self._columns = widths - size + 1
        counts = (heights - size + 1) * self._columns
        self._first_crops = np.cumsum(counts) - counts
        self.count = int(counts.sum())

    def cut(self, numbers: npt.NDArray[np.int64], flips: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint8]:
        """Crops by their numbers.

        Args:
            numbers: ``(B,)`` in ``[0, count)``.
            flips: ``(B, 3)``: whether each crop is turned upside down, mirrored left to right, and then transposed.

        Returns:
            ``(B, C, size, size)``.
        """
        image = self._image_of(numbers)
        rows, columns = np.divmod(numbers - self._first_crops[image], self._columns[image])
        down = self._widths[image]
        start = self._first_pixels[image] + rows * down + columns
        right = np.ones_like(down)
        if flips is not None:
            upside_down, mirrored, transposed = flips.T
            last = self.size - 1
            start = start + last * (upside_down * down + mirrored * right)
            down, right = np.where(upside_down, -down, down), np.where(mirrored, -right, right)
            down, right = np.where(transposed, right, down), np.where(transposed, down, right)
        steps = np.arange(self.size)
        index = start[:, None, None] + (down[:, None] * steps)[:, :, None] + (right[:, None] * steps)[:, None, :]
        return np.ascontiguousarray(rearrange(self._pixels.take(index, axis=0), "b h w c -> b c h w"))

    def files_of(self, numbers: npt.NDArray[np.int64]) -> list[str]:
        """The files that crops are cut from, each once."""
        return list(dict.fromkeys(self.paths[image] for image in self._image_of(numbers)))

    def _image_of(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._first_crops, numbers, side="right") - 1


class CropSampler:
    """Draws crops at random, uniformly over all positions of all images or over a fixed pool of them.

    Args:
        crops: what is drawn from.
        augment: see `PatchDataModule`.
        distinct: size of the fixed pool; None for all positions.
        seed: of the pool and of every draw.
    """

    def __init__(self, crops: Crops, augment: Augment, distinct: int | None, seed: int) -> None:
        self.crops = crops
        self.augment = augment
        self.seed = seed
        self.pool: npt.NDArray[np.int64] | None = None
        if distinct is not None:
            if not 1 <= distinct <= crops.count:
                raise UserError(f"distinct_patches must lie in 1..{crops.count}, the crops there are; got {distinct}")
            self.pool = np.random.default_rng([seed, POOL]).choice(crops.count, distinct, replace=False)

    def draw(self, key: Sequence[int], first: int, count: int) -> Tensor:
        """Samples `first` to `first + count` of the stream that the key names, uint8 ``(count, C, size, size)``.

        Each sample of a stream is the same whatever part of the stream is drawn.
        """
        numbers, flips = self._draw(key, first, count)
        return torch.from_numpy(self.crops.cut(numbers, None if self.augment == "none" else flips))

    def files(self, key: Sequence[int], first: int, count: int) -> list[str]:
        """The files that `draw` cuts these samples from, each once."""
        return self.crops.files_of(self._draw(key, first, count)[0])

    def _draw(self, key: Sequence[int], first: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Numbers of the crops ``(count,)``, and how they are flipped ``(count, 3)``."""
        uniform = np.random.default_rng([self.seed, *key]).random((first + count, 4))[first:]
        numbers = (uniform[:, 0] * (self.crops.count if self.pool is None else len(self.pool))).astype(np.int64)
        if self.pool is not None:
            numbers = self.pool[numbers]
        flips = uniform[:, 1:] < 0.5
        if self.augment == "flip_transpose":
            flips[:, 1] = False
        return numbers, flips
