"""Measurement operators: what is measured, ``y = A x``."""

from __future__ import annotations

import importlib
from operator import attrgetter

import numpy as np
from torch import Tensor

from cs_models.host_memory import check_memory
from cs_models.operator_names import find_operator
from cs_models.operators.bank import MOST_NOISE, Sampling, SamplingBank
from cs_models.operators.base import MatrixOperator, MeasurementOperator, adjoint_error
from cs_models.operators.block import BlockOperator
from cs_models.operators.checks import check_image_size
from cs_models.operators.column import ColumnOperator
from cs_models.operators.fourier import FourierOperator
from cs_models.operators.matrices import (
    check_matrix,
    check_ratio,
    file_source,
    load_matrix,
    tensor_sha256,
)
from cs_models.operators.own import from_matrix, names_file, split_kind
from cs_models.operators.pixel import PixelOperator
from cs_models.operators.radon import RadonOperator
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
    "names_file",
    "split_kind",
]


def make_operator(
    spec: str | Tensor | np.ndarray,
    ratio: float,
    image_size: tuple[int, int],
    seed: int = 0,
    noise_sigma: float = 0.0,
) -> MeasurementOperator:
    """An operator from the words of the command line, or from a matrix.

    Args:
        spec: a name of `cs_models.operator_names.OPERATORS`, with a number for those that take one (``block:32``,
            ``block:pca:32``, ``structured:16``, ``radon:20``), or the path of a `.npy` or `.mat` file. What a file
            holds is told by its shape, or by a word before it: ``fourier:FILE`` and ``pixel:FILE``, masks of the
            image's size; ``column:FILE``; ``block:FILE``. A tensor or an array is taken as the content of a file.
        ratio: CS ratio in (0, 1].
        image_size: (H, W).
        seed: of the random draw; not used for files, principal components and tomography.
        noise_sigma: standard deviation of the noise, on the scale of images in [0, 1].

    Raises:
        UserError: for an unknown name, a ratio outside (0, 1] or a file that does not fit.
    """
    check_ratio(ratio)
    check_range("the seed of a random operator", seed, 0, 2**32 - 1)
    check_range("noise_sigma", noise_sigma, 0, MOST_NOISE)
    image_size = check_image_size(image_size)
    height, width = image_size
    # Some images, their measurements, and where in the image each number of these comes from.
    check_memory(64 * height * width, f"measuring an image of {height}x{width}")
    if not isinstance(spec, str):
        matrix = check_matrix(spec)
        source = {"matrix": "given", "sha256": tensor_sha256(matrix)}
        return from_matrix(matrix, "the matrix", source, ratio, image_size, noise_sigma)
    if names_file(spec):
        kind, path = split_kind(spec)
        return from_matrix(load_matrix(path), path, file_source(path), ratio, image_size, noise_sigma, kind)
    named, number = find_operator(spec)
    module, _, attribute = named.target.partition(":")
    build = attrgetter(attribute)(importlib.import_module(module))
    operator: MeasurementOperator = build(
        ratio=ratio, image_size=image_size, seed=seed, noise_sigma=noise_sigma, **number
    )
    return operator
