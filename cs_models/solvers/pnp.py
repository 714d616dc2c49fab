"""Plug-and-play ADMM: a denoiser in the place of the prior (Venkatakrishnan et al., GlobalSIP 2013)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cs_models.errors import UserError
from cs_models.numerics import relative
from cs_models.operators.base import MeasurementOperator
from cs_models.precision import full_precision
from cs_models.reconstruction import Solution
from cs_models.solvers.base import as_json, check_measurements, column_norm
from cs_models.solvers.convex import INNER_TOLERANCE, ConvexSolver, DataProximal, State, constant_image, solution
from cs_models.solvers.tv import pad_to
from cs_models.transforms.dct import dct_matrix

RHO = 0.3
# Noise, as a standard deviation, that leaves rho half way between exact and very noisy measurements.
NOISY = 5 / 255

Denoiser = Callable[[Tensor, float], Tensor]
"""Maps images ``(N, C, H, W)`` in [0, 1] and the standard deviation of their noise to cleaner images."""


@dataclass(frozen=True)
class DCTDenoiser:
    """Hard thresholding of the DCT of all overlapping BxB blocks, which are then averaged: translation-invariant.

    Attributes:
        block_size: B.
        threshold: in standard deviations of the noise.
    """

    block_size: int = 8
    threshold: float = 3.0

    @full_precision
    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Denoise images ``(N, C, H, W)``, each channel by itself.

        Raises:
            UserError: for images smaller than a block.
        """
        size = self.block_size
        if min(x.shape[-2:]) < size:
            raise UserError(f"the DCT denoiser needs images of at least {size}x{size}, got {x.shape[-2]}x{x.shape[-1]}")
        basis = dct_matrix(size, x.dtype, x.device)
        padded = F.pad(x.flatten(0, 1), [size - 1] * 4, mode="reflect")
        height, width = padded.shape[-2] - size + 1, padded.shape[-1]
        # Matrix products of the first dimension: batches of so small ones, of the last, take longer.
        down = torch.tensordot(basis, padded.unfold(-2, size, 1).movedim(-1, 0), 1)
        lines = torch.empty_like(down)
        # Blocks overlap: `moved` are the rows of `between` with sample k of each block k places further to the right.
        between = down.new_zeros(*down.shape[:-1], width + size - 1)
        first, *others = between.stride()
        moved = between.as_strided(down.shape, (first - 1, *others), size - 1)
        # One vertical frequency at a time: all of them together take B^2 times the memory of the image.
        for frequency in range(size):
            coefficients = torch.tensordot(basis, down[frequency].unfold(-1, size, 1).movedim(-1, 0), 1)
            kept = F.hardshrink(coefficients, self.threshold * sigma)
            if frequency == 0:
                kept[0] = coefficients[0]
            between[..., size - 1 : width] = torch.tensordot(basis.T, kept, 1)
            lines[frequency] = moved.sum(0)
        blended = torch.zeros_like(padded)
        for line, part in enumerate(torch.tensordot(basis.T, lines, 1)):
            blended[:, line : line + height] += part
        return blended.view(*x.shape[:2], -1, width)[..., size - 1 : 1 - size, size - 1 : 1 - size] / size**2


@dataclass(kw_only=True)
class PlugAndPlay(ConvexSolver):
    """ADMM between the measurements and a denoiser, whose noise level falls geometrically over the iterations.

    With noisy measurements the level ends at ``sigma_end + operator.noise_sigma``. `tolerance` bounds the difference
    between the two copies of the image, as a share; the schedule is made for all iterations, so it is 0 by default.

    Attributes:
        denoiser: any callable of images ``(N, C, H, W)`` and a noise level, such as a network that takes the level;
            None: `DCTDenoiser`.
        sigma_start: noise level of the first iteration, images in [0, 1].
        sigma_end: noise level of the last iteration.
        rho: weight of the prior's copy against the measurements; smaller trusts the measurements more. None chooses it
            by the noise, see `rho_for`.
    """

    denoiser: Denoiser | None = None
    sigma_start: float = 0.3
    sigma_end: float = 0.004
    rho: float | None = None
    iterations: int = 60
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.sigma_end > 0, "sigma_end", "more than 0")
        self._require(self.sigma_start >= self.sigma_end, "sigma_start", f"at least sigma_end = {self.sigma_end}")
        self._require(self.rho is None or self.rho > 0, "rho", "more than 0")

    def settings(self) -> dict[str, Any]:
        """The settings; a denoiser that is neither a dataclass nor a module is known by its name alone."""
        return super().settings() | {"denoiser": as_json(self.denoiser or DCTDenoiser())}

    @torch.no_grad()
    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        check_measurements(y, operator)
        denoiser = self.denoiser or DCTDenoiser()
        proximal = DataProximal(operator, self.rho_for(operator, y), INNER_TOLERANCE)
        levels = iter(self.noise_levels(operator.noise_sigma))

        def step(state: State) -> tuple[State, Tensor]:
            x, dual, k, y = state
            measured, k = proximal(pad_to(x, operator.padded_size) - dual, y, k)
            measured += dual
            x = denoiser(operator.crop(measured), next(levels))
            following = measured - pad_to(x, operator.padded_size)
            return (x, following, k, y), relative(following - dual, x)

        start = constant_image(y, operator)
        dual = torch.zeros_like(pad_to(start, operator.padded_size))
        x, iterations, converged = self._iterate((start, dual, torch.zeros_like(y), y), step)
        return solution(x, y, operator, iterations, converged)

    def rho_for(self, operator: MeasurementOperator, y: Tensor) -> float:
        """The rho that is used with an operator and its measurements.

        By default 0.3 without noise. Noise of more than `NOISY` moves it towards 1.3 c, c being the root mean square
        of the norms of A's columns, where the residual is 0.9 of the noise (Morozov's discrepancy principle).
        """
        if self.rho is not None:
            return self.rho
        sigma = operator.noise_sigma
        if sigma == 0:
            return RHO
        noisy = max(RHO, 1.3 * column_norm(operator, y))
        return RHO + (noisy - RHO) * sigma / (sigma + NOISY)

    def noise_levels(self, noise_sigma: float) -> list[float]:
        """The denoiser's noise level in every iteration, for a standard deviation of the noise on y."""
        end = self.sigma_end + noise_sigma
        start = max(self.sigma_start, end)
        return [start * (end / start) ** (k / max(1, self.iterations - 1)) for k in range(self.iterations)]
