"""Line integrals at few angles: sparse-view computed tomography with parallel beams."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from einops import rearrange
from scipy.sparse import csr_array
from torch import Tensor

from cs_models.errors import UserError
from cs_models.host_memory import check_memory
from cs_models.numerics import for_good
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.checks import check_image_size
from cs_models.operators.matrices import check_ratio
from cs_models.precision import full_precision

# The pseudo-inverse factorises a dense matrix of as many rows in float64: 3 GB.
MOST_MEASUREMENTS = 20_000


class RadonOperator(MeasurementOperator):
    """Projections of the image at equally spaced angles; measurements ``(N, C, views, detectors)``.

    A pixel at (x, y) from the centre falls on the detector at ``x cos(angle) + y sin(angle)`` and is shared by the two
    nearest detectors in proportion. The detectors are one pixel wide, as many as the image's longer side, and centred;
    what falls beside them is not measured. The sums are scaled by ``1 / sqrt(views detectors)``, which makes the
    largest singular value about 1, the scale that the solvers' defaults are made for.

    Angles are ``(k + 1/2) pi / views``: no view sums rows and no other columns, whose totals would be the same.

    Attributes:
        views: number of angles.
        detectors: measurements of a view.
    """

    unit_norm = True

    rows: Tensor
    columns: Tensor
    weights: Tensor

    def __init__(
        self, image_size: tuple[int, int], views: int, ratio: float | None = None, noise_sigma: float = 0.0
    ) -> None:
        """
        Args:
            image_size: (H, W).
            views: number of angles.
            ratio: nominal ratio; measurements per pixel where it is not given.
            noise_sigma: see `MeasurementOperator`.

        Raises:
            UserError: without a view, or with more than fit into memory.
        """
        if views < 1:
            raise UserError(f"tomography needs at least 1 view, got {views}")
        height, width = check_image_size(image_size)
        detectors = max(height, width)
        super().__init__(image_size, views * detectors / (height * width) if ratio is None else ratio, noise_sigma)
        self.views, self.detectors = views, detectors
        # Two detectors a pixel and view: their places, weights, and what is kept of both.
        check_memory(90 * views * height * width, f"{views} views of an image of {height}x{width}")
        rows, columns, weights = _projections(height, width, views, detectors)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("weights", weights.float(), persistent=False)
        self._matrices: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        # Shared by copies with other noise, as the matrices are.
        self._factors: dict[torch.device, tuple[Tensor, bool]] = {}

    @classmethod
    def for_ratio(
        cls,
        ratio: float,
        image_size: tuple[int, int],
        views: int | None = None,
        seed: int = 0,
        noise_sigma: float = 0.0,
    ) -> RadonOperator:
        """The views whose measurements come nearest to a ratio; the same for every seed.

        Args:
            ratio: CS ratio in (0, 1].
            image_size: (H, W).
            views: the number that the user expects of the ratio, where one was given.
            seed: not used.
            noise_sigma: see `MeasurementOperator`.

        Raises:
            UserError: if the ratio means another number of views, or is outside (0, 1].
        """
        nearest = views_for_ratio(ratio, image_size)
        if views is not None and views != nearest:
            share = views * max(image_size) / math.prod(image_size)
            size = f"{image_size[0]}x{image_size[1]}"
            raise UserError(
                f"{views} views measure a {size} image at ratio {share:.3g}, and ratio {ratio:g} means {nearest} "
                f"views; give --ratios {share:.3g}, or --operator radon for the views that the ratio gives"
            )
        return cls(image_size, nearest, ratio, noise_sigma)

    def resized(self, height: int, width: int) -> RadonOperator:
        if (height, width) == self.image_size:
            return self
        return RadonOperator((height, width), self.views, self.ratio, self.noise_sigma).to(self.weights)

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "radon", "ratio": self.ratio, "views": self.views}

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return self.views, self.detectors

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        matrix, _ = self._sparse(x.device, x.dtype)
        y = matrix @ rearrange(x, "n c h w -> (h w) (n c)")
        return rearrange(y, "(v d) (n c) -> n c v d", v=self.views, c=x.shape[1])

    @full_precision
    def adjoint(self, y: Tensor) -> Tensor:
        _, transposed = self._sparse(y.device, y.dtype)
        x = transposed @ rearrange(y, "n c v d -> (v d) (n c)")
        return rearrange(x, "(h w) (n c) -> n c h w", h=self.image_size[0], c=y.shape[1])

    @full_precision
    def pinv(self, y: Tensor) -> Tensor:
        # A^+ = A^T (A A^T)^+, in float64: the views are nearly dependent, so the weights of the rows grow large.
        if y.device not in self._factors:
            self._factors[y.device] = self._factorise(y.device)
        factor, triangular = self._factors[y.device]
        right = rearrange(y.double(), "n c v d -> (v d) (n c)")
        weights = torch.cholesky_solve(right, factor) if triangular else factor @ (factor.T @ right)
        return self.adjoint(rearrange(weights, "(v d) (n c) -> n c v d", v=self.views, c=y.shape[1])).to(y.dtype)

    @for_good()
    def _factorise(self, device: torch.device) -> tuple[Tensor, bool]:
        """A matrix F in float64, and whether it is the Cholesky factor of ``A A^T``; else ``(A A^T)^+ = F F^T``."""
        count = self.views * self.detectors
        if count > MOST_MEASUREMENTS:
            raise UserError(
                f"{self.views} views of {self.detectors} detectors are too many for a pseudo-inverse, which takes at "
                f"most {MOST_MEASUREMENTS} measurements; take fewer views or smaller images"
            )
        entries = self.weights.double().cpu().numpy(), (self.rows.cpu().numpy(), self.columns.cpu().numpy())
        matrix = csr_array(entries, shape=(count, math.prod(self.image_size)))
        gram = torch.from_numpy((matrix @ matrix.T).toarray()).to(device)
        factor, failed = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal().square()
        if not failed and pivots.min() > 1e-12 * pivots.max():
            return factor, True
        values, vectors = torch.linalg.eigh(gram)
        kept = values > 1e-12 * values[-1]
        return vectors[:, kept] / values[kept].sqrt(), False

    def _sparse(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and its transpose; kept, since they take longer to make than to apply."""
        if (device, dtype) not in self._matrices:
            shape = self.views * self.detectors, math.prod(self.image_size)
            with for_good():
                weights = self.weights.to(device, dtype)
                rows, columns = self.rows.to(device), self.columns.to(device)
                self._matrices[device, dtype] = (
                    _compressed(rows, columns, weights, shape),
                    _compressed(columns, rows, weights, shape[::-1]),
                )
        return self._matrices[device, dtype]


def views_for_ratio(ratio: float, image_size: tuple[int, int]) -> int:
    """The number of views whose measurements come nearest to a ratio.

    Raises:
        UserError: if the ratio is outside (0, 1].
    """
    check_ratio(ratio)
    image_size = check_image_size(image_size)
    return max(1, round(ratio * math.prod(image_size) / max(image_size)))


def _projections(height: int, width: int, views: int, detectors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of every entry of A, in float64."""
    angles = (torch.arange(views, dtype=torch.float64) + 0.5) * math.pi / views
    down = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    right = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    place = right * angles.cos()[:, None, None] + down * angles.sin()[:, None, None] + (detectors - 1) / 2
    nearest = torch.stack([place.floor(), place.floor() + 1])
    weights = 1 - (place - nearest).abs()
    inside = (nearest >= 0) & (nearest < detectors)
    rows = nearest.long() + detectors * torch.arange(views)[:, None, None]
    columns = torch.arange(height * width).view(height, width).expand_as(rows)
    return rows[inside], columns[inside], weights[inside] / math.sqrt(views * detectors)


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A sparse matrix in compressed rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # PyTorch calls this layout a beta version
        places = torch.stack([rows, columns])
        return torch.sparse_coo_tensor(places, values, shape, check_invariants=False).to_sparse_csr()
