"""What is known of tensors, so that it is computed once: on a GPU each comparison or count makes the host wait."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from cs_models.numerics import for_good

T = TypeVar("T")


class Remembered(Generic[T]):
    """A value that is computed from tensors, kept until one of them is replaced or changed in its place.

    Of inference tensors torch counts no changes, so only their replacement is noticed. Nor does it count those of fused
    optimisers, after which ``torch.autograd.graph.increment_version`` has to. Copies begin without a value.
    """

    def __init__(self) -> None:
        self._value: tuple[T, ...] = ()
        self._tensors: tuple[weakref.ref[Tensor], ...] = ()
        self._versions: tuple[int, ...] = ()

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """The value, which is computed anew where other tensors are given, or changed ones.

        Args:
            tensors: everything that the value depends on.
            compute: gives the value.
        """
        versions = tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors)
        known = [reference() for reference in self._tensors]
        same = len(known) == len(tensors) and all(a is b for a, b in zip(known, tensors, strict=True))
        if not (self._value and same and versions == self._versions):
            with for_good():
                self._value = (compute(),)
            self._tensors, self._versions = tuple(map(weakref.ref, tensors)), versions
        return self._value[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
