"""Measurements in files, which somebody took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cs_models.arrays import read_npy
from cs_models.errors import UserError
from cs_models.files import is_file
from cs_models.operators.base import MeasurementOperator


def load_measurements(path: str | Path, operator: MeasurementOperator) -> Tensor:
    """Measurements ``(N, C, ...)`` from a `.npy` file.

    Args:
        path: the file: one image, ``(N, ...)`` or ``(N, C, ...)``, of images in [0, 1].
        operator: what was measured with; its measurements of one image say what the last dimensions are.

    Raises:
        UserError: if the file is missing or unreadable, or its shape or kind of numbers does not fit the operator.
    """
    if not is_file(path):
        raise UserError(f"measurements not found: {path}")
    array = read_npy(Path(path))
    if array.dtype.kind not in "fiuc" or not np.isfinite(array).all():
        raise UserError(f"{path} holds no array of finite numbers")
    buffer = next(operator.buffers())
    example = operator(torch.zeros(1, 1, *operator.image_size, device=buffer.device))
    expected = tuple(example.shape[2:])
    leading = array.ndim - len(expected)
    if array.shape[max(leading, 0) :] != expected or not 0 <= leading <= 2:
        size = f"{operator.image_size[0]}x{operator.image_size[1]}"
        shape = ", ".join(map(str, expected))
        raise UserError(
            f"{path} has the shape {array.shape}; an image of {size} at ratio {operator.ratio:.3g} gives ({shape}), "
            f"several give (N, {shape}) or (N, channels, {shape})"
        )
    if array.dtype.kind == "c" and not example.is_complex():
        raise UserError(f"{path} holds complex numbers; this operator measures real ones")
    native = array.astype(array.dtype.newbyteorder("="))
    y = torch.from_numpy(native).to(example.dtype)
    y = y.reshape(*(y.shape[:2] if leading == 2 else (-1, 1)), *expected)
    if y.shape[1] not in (1, 3):
        raise UserError(f"{path} has {y.shape[1]} channels per image; a picture has 1 or 3")
    return y
