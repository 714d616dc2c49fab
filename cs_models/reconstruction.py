"""The one interface of everything that reconstructs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.numerics import relative
from cs_models.operators.base import MeasurementOperator
from cs_models.precision import no_tf32


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
    """Anything that maps (y, A) to an estimate of x: a network, a sampler, a training-free solver.

    Subclasses implement `_solve`, and `prepared` where they are made for matrices of a certain form.

    Attributes:
        waits_for_device: whether `_solve` waits for the device anyway, as what looks at its own progress does.
    """

    waits_for_device: ClassVar[bool] = False

    def solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """Reconstruct, and say how it went.

        Args:
            y: measurements of a batch of images, as ``operator(x)`` gives them.
            operator: what was measured; its `image_size` is the size of the result.

        Raises:
            UserError: where y are no measurements of the operator, where the pair of method and operator makes no
                sense, or where the result is not finite. On a device that would have to be waited for, that is left to
                whoever reads the result, see `check_finite`.
        """
        ready_y, ready = self.checked(y, operator)
        with no_tf32():
            solution = self._solve(ready_y, ready)
        if ready is not operator and solution.residual is not None:
            solution = replace(solution, residual=relative(operator(solution.x) - y, y))
        self.check_result(solution.x)
        return solution

    def reconstruct(self, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """The images ``(N, C, H, W)`` of `solve`."""
        return self.solve(y, operator).x

    def checked(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        """Measurements and operator as `_solve` takes them; see `solve`."""
        if not isinstance(operator, MeasurementOperator):
            raise UserError(
                f"the operator is a {type(operator).__name__}; give a MeasurementOperator, "
                "as cs_models.operators.make_operator makes one of a name or a matrix"
            )
        operator.check_measurements(y)
        return self.prepared(y, operator)

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        """The same problem in the form that the method is made for; as it is by default."""
        return y, operator

    def check_result(self, x: Tensor) -> None:
        """Raise UserError if images are not finite, where that makes nobody wait for a device."""
        if self.waits_for_device or x.device.type == "cpu":
            check_finite(x, type(self).__name__)

    @abstractmethod
    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """What `solve` gives, for measurements and operator that were checked and prepared."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the result besides y and A, ready for JSON: solver settings, or the weights' sha256."""


def check_finite(x: Tensor, method: str) -> None:
    """Raise UserError if images ``(N, C, H, W)`` hold NaN or infinity; waits for their device."""
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        raise UserError(
            f"{method} gave values that are not finite in {int((~finite).sum())} of {len(x)} images; check that y are "
            "the measurements of this operator, then try another method, or a network in fp32"
        )
