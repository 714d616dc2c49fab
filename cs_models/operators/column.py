"""Column-wise sampling of images and sampling of 1-D signals (CLOMP)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators.base import MatrixOperator
from cs_models.operators.checks import check_image_size
from cs_models.operators.matrices import check_ratio, gaussian_matrix, unit_norm_columns


class ColumnOperator(MatrixOperator):
    """Samples every image column by the same ``(m, n)`` matrix, n being the image's height.

    1-D signals ``(N, n)`` are images ``(N, 1, n, 1)`` of one column.
    """

    def __init__(
        self,
        matrix: Tensor,
        image_size: tuple[int, int],
        ratio: float | None = None,
        noise_sigma: float = 0.0,
        source: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            matrix: ``(m, H)``.
            image_size: (H, W).
            ratio: nominal ratio; m / H where it is not given.
            noise_sigma: see `MeasurementOperator`.
            source: seed, or file and sha256, for `spec`.

        Raises:
            UserError: if the matrix does not fit the height.
        """
        image_size = check_image_size(image_size)
        if matrix.shape[1] != image_size[0]:
            raise UserError(
                f"a column matrix has as many columns as the image has rows: {image_size[0]} expected, "
                f"got a matrix of {matrix.shape[0]}x{matrix.shape[1]}"
            )
        super().__init__(matrix, image_size, ratio, noise_sigma, source)

    @cached_property
    def column_norm(self) -> float | None:
        """The norm of the matrix's columns where all have the same, not 0, to the rounding of float32; else None."""
        norms = self.matrix.double().norm(dim=0)
        norm = float(norms.mean())
        return norm if norm > 0 and float((norms - norm).abs().max()) <= 1e-5 * norm else None

    @classmethod
    def gaussian(
        cls, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> ColumnOperator:
        """Gaussian, nested in the ratio before its columns are scaled to unit norm; m = floor(ratio n), >= 1."""
        check_ratio(ratio)
        n = check_image_size(image_size)[0]
        # The small term keeps 0.29 * 100 = 28.999... from losing a row to binary rounding.
        rows = max(1, int(ratio * n + 1e-9))
        matrix = unit_norm_columns(gaussian_matrix(rows, n, seed)).float()
        return cls(matrix, image_size, ratio, noise_sigma, {"seed": seed})

    def with_matrix(self, matrix: Tensor, ratio: float, noise_sigma: float) -> ColumnOperator:
        return ColumnOperator(matrix, self.image_size, ratio, noise_sigma, self.source)

    def _for_size(self, image_size: tuple[int, int]) -> ColumnOperator:
        """The same matrix for another width.

        Raises:
            UserError: for another height, unless the matrix was drawn from a seed and can be drawn again.
        """
        height = image_size[0]
        if height == self.image_size[0]:
            return ColumnOperator(self.matrix, image_size, self.ratio, self.noise_sigma, self.source)
        if "seed" not in self.source:
            raise UserError(f"this column matrix is for images of {self.image_size[0]} rows, not of {height}")
        other = ColumnOperator.gaussian(self.ratio, image_size, self.source["seed"], self.noise_sigma)
        return other.to(self.matrix)

    @property
    def spec(self) -> dict[str, Any]:
        return self._facts("column")

    def signals(self, x: Tensor) -> Tensor:
        return rearrange(x, "n c h w -> n c w h")

    def image(self, signals: Tensor) -> Tensor:
        return rearrange(signals, "n c w h -> n c h w")
