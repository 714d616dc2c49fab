"""Which operator a training step samples with: a seeded pool of operators for each ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.numerics import for_good
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.block import BlockOperator
from cs_models.operators.components import check_block_size, principal_rows, principal_source
from cs_models.operators.fourier import FourierOperator
from cs_models.operators.matrices import (
    check_matrix_memory,
    check_ratio,
    gaussian_matrix,
    orthonormal_rows,
    rows_for_ratio,
    structured_rows,
)
from cs_models.operators.pixel import PixelOperator
from cs_models.operators.radon import RadonOperator
from cs_models.operators.structured import StructuredOperator
from cs_models.settings import check_distinct, check_range

# Training matrices have seeds from here on, so that evaluation, whose seeds are small, meets unseen ones.
FIRST_TRAINING_SEED = 100_000
# Of the noise, for pixels in 0..255; far beyond what leaves anything of an image.
MOST_NOISE = 10_000
SMALLEST_RATIO_STEP = 0.001


def _views(ratio: float, image_size: tuple[int, int], seed: int) -> MeasurementOperator:
    """Tomography, which draws nothing."""
    return RadonOperator.for_ratio(ratio, image_size, seed=seed)


def _pixels(ratio: float, image_size: tuple[int, int], seed: int) -> MeasurementOperator:
    return PixelOperator(image_size, ratio, seed)


# Kinds of sampling that have no matrix of short signals, made from ratio, image size and seed.
WHOLE_IMAGES: dict[str, Callable[[float, tuple[int, int], int], MeasurementOperator]] = {
    "pixel": _pixels,
    "fourier": FourierOperator.radial,
    "radial": FourierOperator.radial,
    "cartesian": FourierOperator.cartesian,
    "radon": _views,
}


@dataclass(frozen=True)
class Sampling:
    """What training samples with.

    Attributes:
        ratios: nominal CS ratios in (0, 1], each equally likely.
        kind: "block"; "structured" with a new permutation in every step; "pixel" with new pixels in every step; the
            Fourier masks "radial" (also called "fourier") and "cartesian"; or "radon", parallel beams.
        block_size: B of "block" and "structured".
        matrices: of "block": "gaussian"; or one matrix for all ratios: "pca", the principal components of photographs,
            or "learned", orthonormal rows that start from these and are trained with the network.
        matrices_per_ratio: number of different matrices or Fourier masks; the ratios share matrices, a smaller one
            taking the first rows.
        noise_sigma: largest standard deviation of the noise on the measurements, on the 0-255 scale; each step
            draws one uniformly between 0 and it.
        seed: of the draws and of the matrices.
        ratio_step: if given, `ratios` names the smallest and the largest one, and becomes all those between in such
            steps.
    """

    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    kind: Literal["block", "structured", "pixel", "fourier", "radial", "cartesian", "radon"] = "block"
    block_size: int = 33
    matrices: Literal["gaussian", "pca", "learned"] = "gaussian"
    matrices_per_ratio: int = 1
    noise_sigma: float = 0.0
    seed: int = 0
    ratio_step: float | None = None

    def __post_init__(self) -> None:
        if self.ratio_step is not None:
            # Frozen, like every configuration: set once, here. The ratios that a checkpoint stores give the same again.
            object.__setattr__(self, "ratios", ratio_range(self.ratios, self.ratio_step))
        if not self.ratios:
            raise UserError("sampling needs at least one ratio, such as 0.1")
        for ratio in self.ratios:
            check_ratio(ratio)
        check_distinct("sampling.ratios", self.ratios)
        # Matrices have seeds of their own below 2^32, a thousand for each seed.
        check_range("matrices_per_ratio", self.matrices_per_ratio, 1, 1000)
        check_range("sampling.seed", self.seed, 0, (2**32 - FIRST_TRAINING_SEED) // 1000 - 1)
        check_range("sampling.noise_sigma", self.noise_sigma, 0, MOST_NOISE)
        check_range("sampling.block_size", self.block_size, 1, 2**16)
        if self.kind not in WHOLE_IMAGES:
            n = self.block_size**2
            check_matrix_memory(structured_rows(max(self.ratios), n), n)
        if self.matrices != "gaussian":
            self._check_principal()

    def _check_principal(self) -> None:
        kind = f"matrices '{self.matrices}'"
        if self.kind != "block":
            raise UserError(f"{kind} are for sampling.kind 'block', not '{self.kind}'")
        if self.matrices_per_ratio != 1:
            raise UserError(f"{kind} are one: matrices_per_ratio must be 1, got {self.matrices_per_ratio}")
        check_block_size(self.block_size)

    @property
    def operator(self) -> str:
        """The word of `cs_models.operators.make_operator` for an operator of this kind."""
        if self.kind in WHOLE_IMAGES:
            return self.kind
        return f"block:pca:{self.block_size}" if self.matrices == "pca" else f"{self.kind}:{self.block_size}"


def ratio_range(ends: tuple[float, ...], step: float) -> tuple[float, ...]:
    """The ratios from the first to the last of `ends` in steps, such as the 50 from 0.01 to 0.5 by 0.01.

    Raises:
        UserError: for a step below a thousandth, or ratios that are not two with a step between them.
    """
    if not step >= SMALLEST_RATIO_STEP:
        raise UserError(f"sampling.ratio_step must be at least {SMALLEST_RATIO_STEP}, got {step}")
    for ratio in ends:
        check_ratio(ratio)
    steps = int((ends[-1] - ends[0]) / step + 1e-6) if ends else 0
    if steps < 1:
        raise UserError(
            f"sampling.ratio_step {step:g} goes from the first to the last of two ratios, as in ratios: [0.01, 0.5]; "
            f"got {list(ends)}; ratio_step: null takes ratios as they are"
        )
    return tuple(round(ends[0] + step * index, 6) for index in range(steps + 1))


class SamplingBank:
    """Random projection augmentation: every training step draws a ratio and one of the ratio's matrices.

    The draw depends only on (seed, step), not on the process or on what was drawn before: all ranks of a
    distributed run measure with the same operator, and a resumed run draws what the uninterrupted one would.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._matrices: dict[int, Tensor] = {}
        self._operators: dict[tuple[float, int, tuple[int, int], torch.device], MeasurementOperator] = {}

    def draw(self, step: int, image_size: tuple[int, int], device: torch.device | str = "cpu") -> MeasurementOperator:
        """The operator of a training step. The matrices stay on the device that asked last."""
        generator = torch.Generator().manual_seed(mix(self.sampling.seed, step))
        ratio, index, sigma = self._settings(generator)
        permutation_seed = _below(2**31, generator)
        return self._operator(ratio, index, image_size, permutation_seed, sigma, device)

    def draw_settings(self, step: int) -> tuple[float, float]:
        """The ratio of a training step, and the standard deviation of its noise for pixels in [0, 1]."""
        ratio, _, sigma = self._settings(torch.Generator().manual_seed(mix(self.sampling.seed, step)))
        return ratio, sigma

    def _settings(self, generator: torch.Generator) -> tuple[float, int, float]:
        sampling = self.sampling
        ratio = sampling.ratios[_below(len(sampling.ratios), generator)]
        index = _below(sampling.matrices_per_ratio, generator)
        return ratio, index, sampling.noise_sigma / 255 * torch.rand((), generator=generator).item()

    def matrix(self, ratio: float, index: int = 0, device: torch.device | str | None = None) -> Tensor:
        """Matrix number `index` for a ratio, ``(M, B^2)`` float32 with orthonormal rows; by default where torch makes
        tensors."""
        with for_good():
            if index not in self._matrices:
                self._matrices[index] = self._largest(index)
            self._matrices[index] = self._matrices[index].to(device or torch.get_default_device())
        return self._matrices[index][: self._rows(ratio)]

    def _largest(self, index: int) -> Tensor:
        """Matrix number `index` with the rows of the largest ratio."""
        size, rows = self.sampling.block_size, self._rows(max(self.sampling.ratios))
        if self.sampling.matrices == "pca":
            return principal_rows(rows, size)
        return orthonormal_rows(gaussian_matrix(rows, size**2, self._seed(index))).float()

    def _seed(self, index: int) -> int:
        return FIRST_TRAINING_SEED + 1000 * self.sampling.seed + index

    def _rows(self, ratio: float) -> int:
        n = self.sampling.block_size**2
        return structured_rows(ratio, n) if self.sampling.kind == "structured" else rows_for_ratio(ratio, n)

    def _operator(
        self,
        ratio: float,
        index: int,
        image_size: tuple[int, int],
        permutation_seed: int,
        noise_sigma: float,
        device: torch.device | str,
    ) -> MeasurementOperator:
        key = ratio, index, image_size, torch.device(device)
        if key not in self._operators:
            self._operators[key] = self._first_operator(ratio, index, image_size, device)
        return self._operators[key].with_noise(noise_sigma).permuted(permutation_seed)

    @for_good()
    def _first_operator(
        self, ratio: float, index: int, image_size: tuple[int, int], device: torch.device | str
    ) -> MeasurementOperator:
        """The operator that all steps with this ratio and matrix share, so that what is known of it is found once."""
        if self.sampling.kind in WHOLE_IMAGES:
            return WHOLE_IMAGES[self.sampling.kind](ratio, image_size, self._seed(index)).to(device)
        seeded = {"bank_seed": self.sampling.seed, "index": index}
        source = principal_source(self.sampling.block_size) if self.sampling.matrices == "pca" else seeded
        matrix = self.matrix(ratio, index, device)
        if self.sampling.kind == "structured":
            return StructuredOperator(matrix, image_size, ratio=ratio, source=source)
        return BlockOperator(matrix, image_size, ratio, source=source)


def mix(*numbers: int) -> int:
    """One 63-bit seed from several small numbers; near inputs give unrelated seeds (SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state ^ (number + 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
