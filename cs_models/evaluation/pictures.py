"""Where a comparison keeps its pictures, and writing them; those of signals are ``.npy`` files."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cs_models.errors import UserError
from cs_models.files import replacing
from datamodules.images import write_png

if TYPE_CHECKING:
    from torch import Tensor

    from cs_models.evaluation.results import Row


PATH_SEPARATORS = r"[\\/]"
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Pictures:
    """The files of one reconstruction.

    Attributes:
        original: the image as it was measured; all methods and ratios share it.
        reconstruction: named by method and run key, in a folder for each ratio.
    """

    original: Path
    reconstruction: Path

    @classmethod
    def locate(
        cls, out: Path, dataset: str, origin: str, image: str, channels: str, ratio: float, method: str, run_key: str
    ) -> Pictures:
        """The places below a results folder, whether there are files or not.

        No two sets share a folder, and no two images: an `origin` tells sets apart that have one name. Signals have
        names from inside a file, which may differ in capitals alone; some systems take such folders for one.
        """
        of_set = f"{slug(re.split(PATH_SEPARATORS, origin)[-1])}-{_digest(origin)}" if origin else slug(dataset)
        folder = out / "images" / of_set / _own_name(image, capitals=channels != "signal")
        suffix = "npy" if channels == "signal" else "png"
        return cls(
            folder / f"original_{channels}.{suffix}", folder / f"{ratio:g}" / f"{slug(method)}_{run_key}.{suffix}"
        )

    @classmethod
    def of_row(cls, out: Path, row: Row) -> Pictures:
        """The pictures that belong to a result."""
        return cls.locate(out, row.dataset, row.origin, row.image, row.channels, row.ratio, row.method, row.run_key)

    def exist(self) -> bool:
        """Whether both files are there."""
        return self.original.exists() and self.reconstruction.exists()

    def write(self, original: Tensor, reconstruction: Tensor) -> None:
        """Write both images ``(C, H, W)`` in [0, 1].

        Raises:
            UserError: if they cannot be written.
        """
        write_picture(self.original, original)
        write_picture(self.reconstruction, reconstruction)


def write_picture(path: Path, image: Tensor) -> None:
    """Write an image ``(C, H, W)`` in [0, 1], C = 1 or 3, and the folders that lead to it.

    A path that ends in .npy is given the values themselves, ``(H,)``, of a signal ``(1, H, 1)``.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the folder {path.parent}: {error.strerror}") from error
    if path.suffix == ".npy":
        write_array(path, image.flatten())
    else:
        write_png(path, image.permute(1, 2, 0).squeeze(-1).numpy())


def copy_picture(source: Path, target: Path) -> None:
    """Copy a file, and make the folders that lead to it.

    Raises:
        UserError: if it cannot be read or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror}") from error


def write_array(path: Path, values: Tensor) -> None:
    """Write values as a ``.npy`` file into a folder that exists.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, values.numpy())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def slug(text: str) -> str:
    """A text as part of a file name that every system takes; Windows has names of devices and drops dots at the end."""
    name = re.sub(r"[^\w.=+-]+", "_", text).rstrip(".") or "_"
    return f"_{name}" if DEVICE.match(name) else name


def distinct_slugs(texts: Iterable[str]) -> dict[str, str]:
    """The `slug` of each text, with a digest of the text where another one has the same, but for capitals."""
    names = {text: slug(text) for text in texts}
    taken = [name.casefold() for name in names.values()]
    return {
        text: name if taken.count(name.casefold()) == 1 else f"{name}-{_digest(text)}" for text, name in names.items()
    }


def _own_name(text: str, capitals: bool) -> str:
    """The `slug` of a text, with a digest of the text where that of another text could be the same.

    Args:
        text: a name.
        capitals: whether no other text differs in capitals alone.
    """
    name = slug(text)
    return name if name == text and (capitals or name == name.casefold()) else f"{name}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
