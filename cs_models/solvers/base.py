"""What the training-free solvers have in common: settings, limits, and a bar that shows where they are."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cs_models.errors import UserError
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.operators.matrices import module_sha256
from cs_models.reconstruction import Reconstructor

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

    time_limit: float | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        self._require(self.time_limit is None or self.time_limit > 0, "time_limit", "more than 0 seconds")
        for name, value in vars(self).items():
            if isinstance(value, int | float):  # no setting of a solver makes sense below 0; NaN fails here too
                self._require(0 <= value <= LARGEST_SETTING, name, "0 or more, and a number that float32 can work with")
        self._require(getattr(self, "sparsity", None) != 0, "sparsity", "at least 1")

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
    """Raise UserError unless y is finite, of the shape of the operator's measurements, and of real images."""
    if getattr(operator, "complex_images", False):
        raise UserError("this solver reconstructs real images; use a Fourier operator with complex_images=False")
    height, width = operator.image_size
    if isinstance(operator, MatrixOperator):
        size, expected = y.shape[-1], operator.matrix.shape[0]
    else:
        nothing = torch.zeros(1, 1, height, width, device=y.device, dtype=y.real.dtype)
        size, expected = y.shape[-1], operator(nothing).shape[-1]
    if size != expected:
        raise UserError(
            f"{size} measurements a signal were given and the operator takes {expected}; "
            "reconstruct with the operator that measured"
        )
    if not bool(torch.isfinite(y).all()):
        raise UserError("the measurements hold NaN or infinity; remove or repair these images before reconstruction")


def as_json(value: Any) -> Any:
    """A setting as JSON can hold it: a callable by its name, an instance with its own settings or weights too."""
    if not callable(value):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__qualname__, **{key: as_json(item) for key, item in vars(value).items()}}
    if isinstance(value, nn.Module):
        return {"class": type(value).__qualname__, "sha256": module_sha256(value)}
    return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
