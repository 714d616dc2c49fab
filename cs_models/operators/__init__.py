"""Measurement operators: what is measured, ``y = A x``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cs_models.errors import UserError, nearest
from cs_models.operators.bank import Sampling, SamplingBank
from cs_models.operators.base import MatrixOperator, MeasurementOperator, adjoint_error
from cs_models.operators.block import BlockOperator
from cs_models.operators.column import ColumnOperator
from cs_models.operators.fourier import FourierOperator
from cs_models.operators.matrices import (
    check_matrix,
    check_ratio,
    file_source,
    load_matrix,
    take_rows,
    tensor_sha256,
)
from cs_models.operators.pixel import PixelOperator
from cs_models.operators.radon import RadonOperator, views_for_ratio
from cs_models.operators.structured import StructuredOperator
from cs_models.operators.transform2d import Transform2dOperator

__all__ = [
    "OPERATORS",
    "BlockOperator",
    "ColumnOperator",
    "FourierOperator",
    "MatrixOperator",
    "MeasurementOperator",
    "NamedOperator",
    "PixelOperator",
    "RadonOperator",
    "Sampling",
    "SamplingBank",
    "StructuredOperator",
    "Transform2dOperator",
    "adjoint_error",
    "list_operators",
    "make_operator",
]


@dataclass(frozen=True)
class NamedOperator:
    """An operator that the command line knows by name.

    Attributes:
        name: as it is typed.
        build: what makes it from the keyword arguments ``ratio``, ``image_size``, ``seed`` and ``noise_sigma``.
        summary: one line.
        number: the argument of `build` that a number after the name sets, as in ``block:32``; None if it takes none.
    """

    name: str
    build: Callable[..., MeasurementOperator]
    summary: str
    number: str | None = None


def _principal(
    ratio: float, image_size: tuple[int, int], seed: int, noise_sigma: float, block_size: int = 33
) -> BlockOperator:
    """Principal components are the same for every seed."""
    return BlockOperator.principal(ratio, image_size, block_size, noise_sigma)


def _radon(
    ratio: float, image_size: tuple[int, int], seed: int, noise_sigma: float, views: int | None = None
) -> RadonOperator:
    """The views that a ratio gives; the angles are the same for every seed."""
    expected = views_for_ratio(ratio, image_size)
    if views is not None and views != expected:
        share = RadonOperator(image_size, views).ratio
        size = f"{image_size[0]}x{image_size[1]}"
        raise UserError(
            f"{views} views measure a {size} image at ratio {share:.3g}, and ratio {ratio:g} means {expected} views; "
            f"give --ratios {share:.3g}, or --operator radon for the views that the ratio gives"
        )
    return RadonOperator(image_size, expected, ratio, noise_sigma)


# Adding an operator is its file and one line here.
OPERATORS: dict[str, NamedOperator] = {
    operator.name: operator
    for operator in (
        NamedOperator(
            "block", BlockOperator.gaussian, "random orthonormal rows on 33x33 blocks; block:32 on 32x32", "block_size"
        ),
        NamedOperator(
            "block:pca", _principal, "principal components of photographs on blocks of 33x33 or 32x32", "block_size"
        ),
        NamedOperator(
            "structured",
            StructuredOperator.gaussian,
            "permuted pixels in vectors of n = 32x32, random orthonormal rows; structured:16",
            "block_size",
        ),
        NamedOperator("column", ColumnOperator.gaussian, "one random matrix on every column; 1-D signals"),
        NamedOperator("pixel", PixelOperator, "random pixels (inpainting)"),
        NamedOperator("transform2d", Transform2dOperator, "random signs, then random coefficients of the 2-D DCT"),
        NamedOperator("radial", FourierOperator.radial, "lines through the centre of the spectrum (MRI)"),
        NamedOperator("fourier", FourierOperator.radial, "the same as radial"),
        NamedOperator("cartesian", FourierOperator.cartesian, "columns of the spectrum (MRI)"),
        NamedOperator("radon", _radon, "parallel beams (tomography); radon:20 checks that the ratio means 20", "views"),
    )
}


def make_operator(
    spec: str | Tensor | np.ndarray,
    ratio: float,
    image_size: tuple[int, int],
    seed: int = 0,
    noise_sigma: float = 0.0,
) -> MeasurementOperator:
    """An operator from the words of the command line, or from a matrix.

    Args:
        spec: a name of `OPERATORS`, with a number for those that take one (``block:32``, ``block:pca:32``,
            ``structured:16``, ``radon:20``), or the path of a `.npy` or `.mat` file. A file holds a mask if it has
            the image's size and entries 0 and 1, a column matrix if it has as many columns as the image has rows, and
            otherwise a block matrix of B^2 columns. A tensor or an array is taken as the content of a file.
        ratio: CS ratio in (0, 1].
        image_size: (H, W).
        seed: of the random draw; not used for files, principal components and tomography.
        noise_sigma: standard deviation of the noise, on the scale of images in [0, 1].

    Raises:
        UserError: for an unknown name, a ratio outside (0, 1] or a file that does not fit.
    """
    check_ratio(ratio)
    if not isinstance(spec, str):
        matrix = check_matrix(spec)
        source = {"matrix": "given", "sha256": tensor_sha256(matrix)}
        return _from_matrix(matrix, "the matrix", source, ratio, image_size, noise_sigma)
    if Path(spec).suffix in (".npy", ".mat"):
        return _from_matrix(load_matrix(spec), spec, file_source(spec), ratio, image_size, noise_sigma)
    operator, number = _find(spec)
    return operator.build(ratio=ratio, image_size=image_size, seed=seed, noise_sigma=noise_sigma, **number)


def _find(spec: str) -> tuple[NamedOperator, dict[str, int]]:
    """The operator of a name, and its number as a keyword argument if one is given."""
    # Of block and block:pca the longer one counts.
    name = max((name for name in OPERATORS if f"{spec}:".startswith(f"{name}:")), key=len, default=None)
    if name is None:
        raise UserError(
            f"unknown operator '{spec}', and no .npy or .mat file{nearest(spec.partition(':')[0], OPERATORS)}"
        )
    operator, number = OPERATORS[name], spec.removeprefix(name).removeprefix(":")
    if not number:
        return operator, {}
    if operator.number is None or not number.isdecimal() or int(number) < 1:
        numbered = ", ".join(other.name for other in OPERATORS.values() if other.number)
        raise UserError(
            f"cannot read the operator '{spec}'; a number belongs to {numbered}, as in block:32 and block:pca:32"
        )
    return operator, {operator.number: int(number)}


def list_operators() -> list[tuple[str, str]]:
    """Name and one line of every operator."""
    return [(operator.name, operator.summary) for operator in OPERATORS.values()]


def _from_matrix(
    matrix: Tensor,
    name: str,
    source: dict[str, Any],
    ratio: float,
    image_size: tuple[int, int],
    noise_sigma: float,
) -> MeasurementOperator:
    if tuple(matrix.shape) == image_size and bool(((matrix == 0) | (matrix == 1)).all()):
        return FourierOperator(matrix, noise_sigma=noise_sigma, source=source)
    if matrix.shape[0] > matrix.shape[1]:
        raise UserError(f"{name} is {matrix.shape[0]}x{matrix.shape[1]}; a sampling matrix has more columns than rows")
    rows = take_rows(matrix, ratio, name).float()
    if matrix.shape[1] == image_size[0]:
        return ColumnOperator(rows, image_size, ratio, noise_sigma, source)
    return BlockOperator(rows, image_size, ratio, noise_sigma, source)
