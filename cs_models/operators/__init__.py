"""Measurement operators: what is measured, ``y = A x``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cs_models.errors import UserError, nearest
from cs_models.host_memory import check_memory
from cs_models.operators.bank import MOST_NOISE, Sampling, SamplingBank
from cs_models.operators.base import MatrixOperator, MeasurementOperator, adjoint_error
from cs_models.operators.block import BlockOperator
from cs_models.operators.column import ColumnOperator
from cs_models.operators.fourier import MASKS, FourierOperator
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
from cs_models.settings import check_range

__all__ = [
    "BlockOperator",
    "ColumnOperator",
    "FourierOperator",
    "MatrixOperator",
    "MeasurementOperator",
    "PixelOperator",
    "RadonOperator",
    "Sampling",
    "SamplingBank",
    "StructuredOperator",
    "Transform2dOperator",
    "adjoint_error",
    "make_operator",
]

OPERATOR_NAMES = (
    "block", "structured", "column", "pixel", "transform2d", "fourier", "radial", "cartesian", "radon",
)  # fmt: skip
SIZED = ("block", "structured", "radon")


def make_operator(
    spec: str | Tensor | np.ndarray,
    ratio: float,
    image_size: tuple[int, int],
    seed: int = 0,
    noise_sigma: float = 0.0,
) -> MeasurementOperator:
    """An operator from the words of the command line, or from a matrix.

    Args:
        spec: ``block`` (33x33), ``block:32``, ``block:pca`` (principal components of photographs in place of random
            rows, 33x33), ``block:pca:32``, ``structured`` (n = 32^2), ``structured:16``, ``column``, ``pixel``,
            ``transform2d`` (random signs, then random coefficients of the 2-D DCT), ``radial`` or ``fourier`` (MRI,
            radial mask), ``cartesian`` (MRI, columns), ``radon`` (tomography, as many views as the ratio gives),
            ``radon:20`` (20 views, at a ratio that fits), or the path of a `.npy` or `.mat` file. A file holds a mask
            where it is of the image's size with entries 0 and 1, a column matrix where it has as many columns as the
            image has rows, and else a block matrix of B^2 columns. A tensor or an array is taken as the content of
            a file.
        ratio: CS ratio in (0, 1].
        image_size: (H, W).
        seed: of the random draw; not used for files and principal components.
        noise_sigma: standard deviation of the noise, on the scale of images in [0, 1].

    Raises:
        UserError: for an unknown name, a ratio outside (0, 1] or a file that does not fit.
    """
    check_ratio(ratio)
    check_range("the seed of a random operator", seed, 0, 2**32 - 1)
    check_range("noise_sigma", noise_sigma, 0, MOST_NOISE)
    height, width = image_size
    # Some images, their measurements, and where in the image each number of these comes from.
    check_memory(64 * height * width, f"measuring an image of {height}x{width}")
    if not isinstance(spec, str):
        matrix = check_matrix(spec)
        source = {"matrix": "given", "sha256": tensor_sha256(matrix)}
        return _from_matrix(matrix, "the matrix", source, ratio, image_size, noise_sigma)
    name, _, size = spec.partition(":")
    if Path(spec).suffix in (".npy", ".mat"):
        return _from_matrix(load_matrix(spec), spec, file_source(spec), ratio, image_size, noise_sigma)
    if name not in OPERATOR_NAMES:
        raise UserError(f"unknown operator '{spec}', and no .npy or .mat file{nearest(name, OPERATOR_NAMES)}")
    principal = name == "block" and size.split(":")[0] == "pca"
    if principal:
        size = size.removeprefix("pca").removeprefix(":")
    if size and (name not in SIZED or not re.fullmatch(r"0*[1-9]\d{0,8}", size)):
        raise UserError(
            f"cannot read the operator '{spec}'; a number belongs to {', '.join(SIZED)}, as in block:32; "
            "principal components are block:pca and block:pca:32"
        )
    if principal:
        return BlockOperator.principal(ratio, image_size, int(size or 33), noise_sigma)
    if name == "block":
        return BlockOperator.gaussian(ratio, image_size, int(size or 33), seed, noise_sigma)
    if name == "structured":
        return StructuredOperator.gaussian(ratio, image_size, int(size or 32), seed, noise_sigma)
    if name == "column":
        return ColumnOperator.gaussian(ratio, image_size, seed, noise_sigma)
    if name == "pixel":
        return PixelOperator(image_size, ratio, seed, noise_sigma)
    if name == "transform2d":
        return Transform2dOperator(image_size, ratio, seed, noise_sigma)
    if name == "radon":
        return _radon(ratio, image_size, size, noise_sigma)
    return MASKS["radial" if name == "fourier" else name](ratio, image_size, seed, noise_sigma)


def _radon(ratio: float, image_size: tuple[int, int], views: str, noise_sigma: float) -> RadonOperator:
    expected = views_for_ratio(ratio, image_size)
    if views and int(views) != expected:
        share = int(views) * max(image_size) / math.prod(image_size)
        size = f"{image_size[0]}x{image_size[1]}"
        raise UserError(
            f"{views} views measure a {size} image at ratio {share:.3g}, and ratio {ratio:g} means {expected} views; "
            f"give --ratios {share:.3g}, or --operator radon for the views that the ratio gives"
        )
    return RadonOperator(image_size, expected, ratio, noise_sigma)


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
