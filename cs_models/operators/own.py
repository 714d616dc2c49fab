"""An operator from a user's own matrix or mask."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.block import BlockOperator
from cs_models.operators.column import ColumnOperator
from cs_models.operators.fourier import FourierOperator
from cs_models.operators.matrices import take_rows
from cs_models.operators.pixel import PixelOperator
from cs_models.operators.rows import NOTHING_MEASURED

logger = logging.getLogger(__name__)

# A mask fits a ratio if the share of what it measures is as near as this.
SHARE_TOLERANCE = 0.01


def from_matrix(
    matrix: Tensor,
    name: str,
    source: dict[str, Any],
    ratio: float,
    image_size: tuple[int, int],
    noise_sigma: float = 0.0,
    kind: str | None = None,
) -> MeasurementOperator:
    """An operator from a matrix.

    Args:
        matrix: a mask ``(H, W)`` of zeros and ones (Fourier coefficients or pixels), a matrix ``(M, H)`` of columns, or
            one ``(M, B^2)`` of blocks.
        name: what to call it in errors.
        source: where it comes from, for `spec`.
        ratio: CS ratio; a matrix gives its first rows, a mask must measure that share.
        image_size: (H, W).
        noise_sigma: standard deviation of the noise, on the scale of images in [0, 1].
        kind: "fourier", "pixel", "column" or "block"; None where its shape says which one it is.

    Raises:
        UserError: if it fits none or several of them, not the one that is asked for, or not the ratio.
    """
    if not bool(matrix.any()):
        raise UserError(f"{name}: {NOTHING_MEASURED}")
    fitting = [other for other, fits in KINDS.items() if fits(matrix, image_size)]
    if kind is None:
        kind = _only_kind(matrix, name, ratio, image_size, fitting)
    elif kind not in fitting:
        raise UserError(
            f"{name} is {_shape(matrix)}; {kind}:FILE takes {EXPECTED[kind]}, for {_size(image_size)} images"
        )
    if kind in ("fourier", "pixel"):
        return _masked(matrix, name, source, ratio, noise_sigma, kind)
    rows = take_rows(matrix, ratio, name).float()
    build = ColumnOperator if kind == "column" else BlockOperator
    return build(rows, image_size, ratio, noise_sigma, source)


def is_mask(matrix: Tensor, image_size: tuple[int, int]) -> bool:
    """Whether it has the image's size, zeros, and one other value, such as 1 or 255."""
    return tuple(matrix.shape) == image_size and bool(((matrix == 0) | (matrix == matrix.max())).all())


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


KINDS: dict[str, Callable[[Tensor, tuple[int, int]], bool]] = {
    "fourier": is_mask,
    "pixel": is_mask,
    "column": lambda matrix, image_size: _is_wide(matrix) and matrix.shape[1] == image_size[0],
    "block": lambda matrix, image_size: _is_wide(matrix) and math.isqrt(matrix.shape[1]) ** 2 == matrix.shape[1],
}
EXPECTED = {
    "fourier": "a mask of the image's size",
    "pixel": "a mask of the image's size",
    "column": "a matrix with as many columns as the image has rows, and no more rows than columns",
    "block": "a matrix with B*B columns, such as 1089, and no more rows than columns",
}


def names_file(words: str | None) -> bool:
    """Whether an operator's words name a file: ``FILE``, or ``KIND:FILE``."""
    return words is not None and Path(words).suffix.lower() in (".npy", ".mat")


def split_kind(words: str) -> tuple[str | None, str]:
    """Kind and path of ``KIND:FILE``; of ``FILE`` no kind."""
    kind, _, path = words.partition(":")
    return (kind, path) if kind in KINDS else (None, words)


def _only_kind(matrix: Tensor, name: str, ratio: float, image_size: tuple[int, int], fitting: list[str]) -> str:
    """What a matrix is by its shape; a mask that measures the right share is taken for one of the spectrum."""
    if not fitting and not _is_wide(matrix):
        raise UserError(f"{name} is {_shape(matrix)}; a sampling matrix has more columns than rows")
    if not fitting:
        expected = "; ".join(f"{kind}: {text}" for kind, text in EXPECTED.items() if kind != "pixel")
        raise UserError(
            f"{name} is {_shape(matrix)} and fits no way of measuring {_size(image_size)} images ({expected})"
        )
    if "fourier" in fitting and (len(fitting) == 2 or abs(share(matrix) - ratio) <= SHARE_TOLERANCE):
        return "fourier"
    kinds = [kind for kind in fitting if kind != "pixel"]
    if len(kinds) > 1:
        words = " or ".join(f"{kind}:FILE" for kind in fitting)
        raise UserError(f"{name} is {_shape(matrix)}, which may be read in several ways; say which one: {words}")
    return kinds[0]


def _masked(
    matrix: Tensor, name: str, source: dict[str, Any], ratio: float, noise_sigma: float, kind: str
) -> MeasurementOperator:
    measured = share(matrix)
    if abs(measured - ratio) > SHARE_TOLERANCE:
        raise UserError(
            f"{name} measures {100 * measured:.3g} %, not {100 * ratio:.3g} %; give --ratios {measured:.3g}"
        )
    mask = matrix != 0
    if kind == "pixel":
        return PixelOperator.from_mask(mask, ratio, noise_sigma, source)
    if not mask[0, 0]:
        logger.warning(
            "%s does not measure the mean of an image, which lies at its first entry; if its lowest frequency is in "
            "the middle, store numpy.fft.ifftshift of it",
            name,
        )
    return FourierOperator(mask, ratio, noise_sigma, source=source)


def share(matrix: Tensor) -> float:
    """The share of a mask that is measured."""
    return (matrix != 0).double().mean().item()


def _shape(matrix: Tensor) -> str:
    return f"{matrix.shape[0]}x{matrix.shape[1]}"


def _size(image_size: tuple[int, int]) -> str:
    return f"{image_size[0]}x{image_size[1]}"
