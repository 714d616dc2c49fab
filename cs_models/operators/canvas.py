"""An operator seen from a larger image."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cs_models.operators.base import MeasurementOperator


class Canvas(MeasurementOperator):
    """An operator seen from a larger image, whose extra rows and columns are not measured."""

    def __init__(self, operator: MeasurementOperator, image_size: tuple[int, int]) -> None:
        super().__init__(image_size, operator.ratio, operator.noise_sigma)
        self.operator = operator
        height, width = operator.image_size
        self.margin = (0, image_size[1] - width, 0, image_size[0] - height)

    @property
    def measurement_shape(self) -> tuple[int, ...] | None:
        return self.operator.measurement_shape

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.operator.image_size
        return self.operator(x[..., :height, :width])

    def adjoint(self, y: Tensor) -> Tensor:
        return F.pad(self.operator.adjoint(y), self.margin)

    def pinv(self, y: Tensor) -> Tensor:
        return F.pad(self.operator.pinv(y), self.margin)

    def resized(self, height: int, width: int) -> Canvas:
        return Canvas(self.operator, (height, width))

    @property
    def spec(self) -> dict[str, Any]:
        return self.operator.spec
