"""The one interface of everything that reconstructs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cs_models.operators.base import MeasurementOperator


@dataclass(frozen=True)
class Solution:
    """A reconstruction and how it was reached.

    Attributes:
        x: images ``(N, C, H, W)``, not clipped.
        iterations: iterations of each image ``(N,)``; None where the word has no meaning.
        residual: ``|A x - y| / |y|`` of each image ``(N,)``.
        converged: whether the stopping rule was met before the limit on iterations or time ``(N,)``.
    """

    x: Tensor
    iterations: Tensor | None = None
    residual: Tensor | None = None
    converged: Tensor | None = None


class Reconstructor(ABC):
    """Anything that maps (y, A) to an estimate of x: a network, a sampler, a training-free solver."""

    @abstractmethod
    def solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """Reconstruct, and say how it went.

        Args:
            y: measurements of a batch of images, as ``operator(x)`` gives them.
            operator: what was measured; its `image_size` is the size of the result.

        Raises:
            UserError: where the pair of method and operator makes no sense.
        """

    def reconstruct(self, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """The images ``(N, C, H, W)`` of `solve`."""
        return self.solve(y, operator).x

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the result besides y and A, ready for JSON: solver settings, or the weights' sha256."""
