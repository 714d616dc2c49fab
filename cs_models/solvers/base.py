"""What the training-free solvers have in common: settings, limits, and a bar that shows where they are."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cs_models.errors import UserError
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.matrices import module_sha256
from cs_models.operators.whitening import as_published
from cs_models.reconstruction import Reconstructor

# Pixels of an image up to which the norms of an operator's columns are computed, and not estimated.
SMALL = 32 * 32
# Seeds go up to it; weights and steps far below it have lost all meaning.
LARGEST_SETTING = 2**32


@dataclass(kw_only=True)
class IterativeSolver(Reconstructor):
    """A solver with a limit on time and a progress bar. Subclasses are dataclasses whose fields are the settings.

    Attributes:
        time_limit: seconds that one call of `solve` may take; the best estimate so far is returned then, marked as
            not converged. None: no limit.
        progress: show a bar over the iterations.
    """

    waits_for_device: ClassVar[bool] = True

    time_limit: float | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        self._require(self.time_limit is None or self.time_limit > 0, "time_limit", "more than 0 seconds")
        for name, value in vars(self).items():
            if isinstance(value, int | float):  # no setting of a solver makes sense below 0; NaN fails here too
                self._require(0 <= value <= LARGEST_SETTING, name, "0 or more, and a number that float32 can work with")

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        """With orthonormal rows, or columns of norm 1: weights, thresholds and tolerances are made for these."""
        return as_published(y, operator)

    def settings(self) -> dict[str, Any]:
        fields = (field.name for field in dataclasses.fields(self) if field.name != "progress")
        return {"solver": type(self).__name__} | {name: as_json(getattr(self, name)) for name in fields}

    def run(self, total: int) -> Run:
        """The clock and the bar of one call of `solve`, as a context; `total` iterations at most."""
        return Run(self.time_limit, tqdm(total=total, desc=type(self).__name__, leave=False, disable=not self.progress))

    def _require(self, holds: bool, name: str, expected: str) -> None:
        """Raise UserError for a setting outside its range."""
        if not holds:
            raise UserError(f"{type(self).__name__}: {name} is {getattr(self, name)}; expected {expected}")


class Run:
    """Counts the iterations of a solver and says when its time is over."""

    def __init__(self, time_limit: float | None, bar: tqdm) -> None:
        self._deadline = None if time_limit is None else time.perf_counter() + time_limit
        self._bar = bar

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self) -> bool:
        """Count an iteration that is about to begin; False if there is no time for it."""
        self._bar.update()
        return self._deadline is None or time.perf_counter() < self._deadline


def check_measurements(y: Tensor, operator: MeasurementOperator) -> None:
    """Raise UserError unless y is finite and of real images."""
    if getattr(operator, "complex_images", False):
        raise UserError("this solver reconstructs real images; use a Fourier operator with complex_images=False")
    if not bool(torch.isfinite(y).all()):
        raise UserError("the measurements hold NaN or infinity; remove or repair these images before reconstruction")


def column_norm(operator: MeasurementOperator, y: Tensor) -> float:
    """Root mean square of the norms of A's columns, ``sqrt(trace(A^T A) / n)``, in the precision of measurements y.

    One probe estimates it; of a small image it might see nothing, so there every pixel is one.
    """
    height, width = operator.image_size
    n = height * width
    # Signs of another kind of generator than operators draw theirs with: the product of equal ones is a constant image,
    # of which they measure nothing or all.
    probes = torch.eye(n) if n <= SMALL else torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (1, n)))
    probes = probes.to(y.device, y.real.dtype, non_blocking=True)
    measured = operator(probes.view(-1, 1, height, width))
    return float(measured.abs().square().sum() / n) ** 0.5


def as_json(value: Any) -> Any:
    """A setting as JSON can hold it: a callable by its name, an instance with its own settings or weights too."""
    if not callable(value):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__qualname__, **{key: as_json(item) for key, item in vars(value).items()}}
    if isinstance(value, nn.Module):
        return {"class": type(value).__qualname__, "sha256": module_sha256(value)}
    return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
