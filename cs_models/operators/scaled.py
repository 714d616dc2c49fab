"""Operators without a matrix on a scale of their own, such as a convolution times 255, as methods expect them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cs_models.operators.base import MatrixOperator, MeasurementOperator

POWER_ITERATIONS = 30
# How near to 1 the norm is taken for 1; power iteration may be off by some hundredths.
NEAR = 0.1


class ScaledOperator(MeasurementOperator):
    """Another operator times a factor; what it takes are the other's measurements times the factor."""

    def __init__(self, operator: MeasurementOperator, factor: float) -> None:
        """
        Args:
            operator: A.
            factor: f, of ``f A``; more than 0.
        """
        super().__init__(operator.image_size, operator.ratio, factor * operator.noise_sigma)
        self.operator = operator
        self.factor = factor
        self.complex_images = getattr(operator, "complex_images", False)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.adjoint(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.operator.pinv(y / self.factor)

    def resized(self, height: int, width: int) -> ScaledOperator:
        return ScaledOperator(self.operator.resized(height, width), self.factor)

    @property
    def padded_size(self) -> tuple[int, int]:
        return self.operator.padded_size

    @property
    def measurement_shape(self) -> tuple[int, ...] | None:
        return self.operator.measurement_shape

    @property
    def spec(self) -> dict[str, Any]:
        return self.operator.spec | {"factor": self.factor}


def at_unit_norm(y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
    """Measurements and operator divided by its norm; themselves where that is 1 anyhow.

    Operators with a matrix are left alone: `whitening` does better by them. The norm is computed once.
    """
    if operator.unit_norm or isinstance(operator, MatrixOperator):
        return y, operator
    key = "at unit norm"
    if key not in operator.derived:
        norm = norm_by_power(operator)
        operator.derived[key] = None if abs(norm - 1) <= NEAR or norm == 0 else ScaledOperator(operator, 1 / norm)
    scaled: ScaledOperator | None = operator.derived[key]
    return (y, operator) if scaled is None else (scaled.factor * y, scaled)


def norm_by_power(operator: MeasurementOperator) -> float:
    """``|A|``, the largest singular value, which power iteration approaches from below."""
    x = probe(operator)
    for _ in range(POWER_ITERATIONS):
        norm = x.norm()
        if norm == 0:
            break
        x = operator.normal(x / norm)
    return math.sqrt(x.norm())


def probe(operator: MeasurementOperator) -> Tensor:
    """A random image ``(1, 1, H, W)``, the same for all operators of a size, where the operator is."""
    buffers = [*operator.buffers(), *operator.parameters()]
    dtype = next((tensor.dtype for tensor in buffers if tensor.is_floating_point()), torch.float32)
    image = torch.randn(1, 1, *operator.image_size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return image.to(buffers[0].device, non_blocking=True) if buffers else image
