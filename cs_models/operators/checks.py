"""What an operator checks before it computes: one clear line for what would fail deep inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import index
from typing import Any

from torch import Tensor

from cs_models.errors import UserError


def check_image_size(image_size: Any) -> tuple[int, int]:
    """(H, W) as two integers.

    Raises:
        UserError: unless it is a pair of positive integers.
    """
    try:
        height, width = (index(side) for side in image_size)
    except (TypeError, ValueError):
        raise UserError(f"image_size is {image_size!r}; expected (height, width) in pixels, as in (256, 256)") from None
    if height < 1 or width < 1:
        raise UserError(f"image_size is {(height, width)}; both sides must be at least 1")
    return height, width


def checked(method: Callable[[Any, Tensor], Tensor], check: str) -> Callable[[Any, Tensor], Tensor]:
    """A method that has its tensor checked by another one first."""

    @functools.wraps(method)
    def wrapped(self: Any, tensor: Tensor) -> Tensor:
        getattr(self, check)(tensor)
        return method(self, tensor)

    return wrapped


def check_tensor(value: Any, name: str, remedy: str) -> None:
    """Raise UserError unless a value is a tensor of floating-point or complex numbers."""
    if not isinstance(value, Tensor):
        raise UserError(f"{name} are a {type(value).__name__}; give a tensor, as torch.from_numpy makes of an array")
    if not (value.is_floating_point() or value.is_complex()):
        raise UserError(f"{name} are {value.dtype}; give floating-point numbers, such as {remedy}")
