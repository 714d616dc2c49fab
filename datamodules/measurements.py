"""Sets of measurements without images: what one device took with one matrix.

A set is a folder with

* ``measurements.json``: the fields of `Description`,
* ``.npy`` files, each with the measurements of one image, or of several as ``(N, ...)`` or ``(N, C, ...)``,
* the matrix or mask, where ``operator`` names a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cs_models.errors import UserError, first_line
from cs_models.files import is_file, is_folder
from cs_models.host_memory import check_memory
from cs_models.operators import MeasurementOperator, make_operator, names_file, split_kind
from cs_models.operators.bank import MOST_NOISE
from cs_models.operators.matrices import check_ratio
from cs_models.operators.recorded import load_measurements
from cs_models.settings import check_range, plain_values, typed

DESCRIPTION = "measurements.json"
NEEDED = ("operator", "image_size", "ratio")
# Bytes of a description, which has a few numbers.
LONGEST = 10_000


@dataclass(frozen=True)
class Description:
    """What is known of a set.

    Attributes:
        operator: what was measured with, in the words of ``eval.py --operator``: a name, or a file in the folder, as
            ``matrix.npy`` or ``pixel:mask.npy``.
        image_size: (H, W) of the images.
        ratio: CS ratio in (0, 1].
        seed: of a named operator's draw.
        noise: standard deviation of the noise on the measurements, for pixels in 0..255; 0 where it is not known.
        bits: of quantised measurements; for the record.
    """

    operator: str
    image_size: tuple[int, ...]
    ratio: float
    seed: int = 0
    noise: float = 0.0
    bits: int | None = None

    def __post_init__(self) -> None:
        if len(self.image_size) != 2:
            raise UserError(f"image_size is {list(self.image_size)}; expected [H, W]")
        check_ratio(self.ratio)
        check_range("noise", self.noise, 0, MOST_NOISE)
        if names_file(self.operator) and Path(self.path).name != self.path:
            raise UserError(f"operator names '{self.path}'; expected a file inside the folder, by its name alone")

    @property
    def path(self) -> str:
        """The name of the file in `operator`, if it names one."""
        return split_kind(self.operator)[1]

    def make_operator(self, folder: Path) -> MeasurementOperator:
        """The operator, of a file in this folder or of its name.

        Raises:
            UserError: as `cs_models.operators.make_operator`.
        """
        words = self.operator
        if names_file(words):
            words = words.removesuffix(self.path) + str(folder / self.path)
        height, width = self.image_size
        return make_operator(words, self.ratio, (height, width), self.seed, self.noise / 255)


@dataclass(frozen=True)
class MeasurementSet:
    """A set in memory.

    Attributes:
        y: measurements ``(K, 1, ...)``; each channel of an image counts for itself.
        operator: what took them.
        files: that they come from, one name for each of `y`.
    """

    y: Tensor
    operator: MeasurementOperator
    files: Sequence[str]


def read_measurements(folder: str | Path) -> MeasurementSet:
    """Read a set.

    Raises:
        UserError: where a file is missing or unreadable, the description is not one, measurements do not fit the
            operator, or all of them do not fit into memory.
    """
    folder = Path(folder)
    description = _describe(folder)
    try:
        operator = description.make_operator(folder)
    except UserError as error:
        raise UserError(f"{folder / DESCRIPTION}: {error}") from None
    own = {description.path} if names_file(description.operator) else set()
    paths = [path for path in sorted(folder.glob("*.npy")) if path.name not in own and not path.name.startswith(".")]
    if not paths:
        raise UserError(f"no measurements in '{folder}'; expected .npy files beside {DESCRIPTION}")
    # Each by itself, and all of them together.
    check_memory(2 * sum(path.stat().st_size for path in paths), f"the measurements in '{folder}'")
    read = [load_measurements(path, operator).flatten(0, 1)[:, None] for path in paths]
    files = [str(path) for path, y in zip(paths, read, strict=True) for _ in y]
    if not files:
        raise UserError(f"the files in '{folder}' hold the measurements of no image")
    return MeasurementSet(torch.cat(read), operator, files)


def _describe(folder: Path) -> Description:
    path = folder / DESCRIPTION
    if not is_file(path):
        what = "holds no" if is_folder(folder) else "is no folder with a"
        raise UserError(f"'{folder}' {what} {DESCRIPTION}, which says how was measured; cs-models measure makes a set")
    try:
        if path.stat().st_size > LONGEST:
            raise UserError("it is longer than any description of a set")
        values: Any = plain_values(json.loads(path.read_text(encoding="utf-8")))
        missing = [name for name in NEEDED if isinstance(values, dict) and name not in values]
        if missing:
            raise UserError(f"it does not say {' and '.join(missing)}")
        return typed(Description, values, "it")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read '{path}': {first_line(error)}") from error


class MeasurementBatches(Dataset[Tensor]):
    """Batches ``(batch_size, 1, ...)`` of a set by their number since the start of training, drawn at random.

    Every process takes its own part of a global batch of ``world_size * batch_size``.
    """

    def __init__(
        self,
        measurements: MeasurementSet,
        batch_size: int,
        batches_per_epoch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.measurements = measurements
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __getitem__(self, step: int) -> Tensor:
        return self.measurements.y[torch.from_numpy(self._draw(step))]

    def files(self, step: int) -> list[str]:
        """The files of this process's part of a batch, each once."""
        return list(dict.fromkeys(self.measurements.files[number] for number in self._draw(step)))

    def _draw(self, step: int) -> np.ndarray:
        count = len(self.measurements.y)
        drawn = np.random.default_rng([self.seed, step]).integers(count, size=self.world_size * self.batch_size)
        return drawn[self.rank * self.batch_size :][: self.batch_size]
