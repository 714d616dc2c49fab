"""What solvers do with the noise that an operator knows of; all of them by Morozov's discrepancy principle.

An estimate should explain the measurements as well as the truth does, and no better: its residual should be as large as
the noise is expected to be. Solvers that add one thing after the other stop there, see `noise_energy`. Solvers with a
penalty set its weight so that they end near there, by the noise of a pixel of ``A^T y``, see `image_noise`.
"""

from __future__ import annotations

from torch import Tensor

from cs_models.operators.base import MeasurementOperator
from cs_models.solvers.base import column_norm


def image_noise(operator: MeasurementOperator, y: Tensor) -> float:
    """``sigma c``, the standard deviation of the noise on a pixel of ``A^T y``; 0 without noise.

    Args:
        operator: A, with sigma, its `noise_sigma`; c is the root mean square of the norms of its columns.
        y: measurements, for their precision and device.
    """
    return operator.noise_sigma * column_norm(operator, y) if operator.noise_sigma else 0.0


def noise_energy(operator: MeasurementOperator, y: Tensor) -> float:
    """Expected ``|noise|^2`` on one signal's measurements ``(..., m)``: ``m sigma^2``, of complex ones twice that."""
    return (2 if y.is_complex() else 1) * y.shape[-1] * operator.noise_sigma**2
