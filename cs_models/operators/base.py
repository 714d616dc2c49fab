"""What is measured: ``y = A x``, as a module that moves between devices and dtypes with its matrix.

Every operator obeys four laws, which `tests/test_operators.py` checks for each of them in float64:

* ``<A x, y> = <x, A^T y>`` (for complex measurements the real part of the inner product),
* ``A pinv(A x) = A x``,
* ``pinv(A pinv(y)) = pinv(y)``,
* ``normal(x) = A^T A x``.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.operators.checks import check_image_size, check_tensor, checked
from cs_models.operators.remembered import Remembered
from cs_models.operators.rows import RowSpace, rank_tolerance
from cs_models.precision import full_precision

# Smallest ratio of the pivots of QR with which the inverse keeps some ten digits in float64.
FULL_RANK = 1e-3


class MeasurementOperator(nn.Module, ABC):
    """A linear map from images ``(N, C, H, W)`` to measurements ``(N, C, ...)``.

    Every channel of every image is measured by itself with the same map, so colour images need no special case.

    What `forward`, `adjoint` and `pinv` of any subclass are given is checked first, by shape and dtype alone: that
    costs a microsecond and never waits for a device.

    An operator is bound to one image size; `resized` gives the same sampling for another size, sharing the matrix.

    Attributes:
        image_size: (H, W) of the images that it measures.
        ratio: nominal CS ratio in (0, 1], measurements per pixel.
        noise_sigma: standard deviation of the white noise on the measurements that `measure` adds, on the scale
            of images in [0, 1].
        unit_norm: whether the largest singular value is known to be about 1; methods measure it where it is not.
        derived: what others made of this operator and keep with it, by what determined it.
    """

    unit_norm: ClassVar[bool] = False

    __call__: Callable[..., Tensor]

    def __init__(self, image_size: tuple[int, int], ratio: float, noise_sigma: float = 0.0) -> None:
        super().__init__()
        self.image_size = check_image_size(image_size)
        self.ratio = float(ratio)
        self.noise_sigma = float(noise_sigma)
        self.derived: dict[Any, Any] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        checks = {"forward": "check_images", "adjoint": "check_measurements", "pinv": "check_measurements"}
        for name, check in checks.items():
            if name in cls.__dict__:
                setattr(cls, name, checked(cls.__dict__[name], check))

    def check_images(self, x: Tensor) -> None:
        """Raise UserError unless x can be images that this operator measures, by its shape and dtype."""
        check_tensor(x, "images", "x.float() / 255 where they are 0..255")
        if x.ndim != 4 or x.shape[-2:] != self.image_size:
            height, width = self.image_size
            raise UserError(
                f"images of shape {tuple(x.shape)} were given to an operator for (N, C, {height}, {width}); "
                "operator.resized(height, width) is the same sampling for another size"
            )

    def check_measurements(self, y: Tensor) -> None:
        """Raise UserError unless y can be measurements of this operator, by its shape and dtype."""
        check_tensor(y, "measurements", "y.float()")
        expected = self.measurement_shape
        if expected is None or (y.ndim == 2 + len(expected) and y.shape[2:] == expected):
            return
        if y.ndim == 2 + len(expected) and y.shape[-1] != expected[-1]:
            problem = f"{y.shape[-1]} measurements a signal were given and the operator takes {expected[-1]}"
        else:
            shape = ", ".join(["N", "C", *map(str, expected)])
            problem = f"measurements of shape {tuple(y.shape)} were given and the operator takes ({shape})"
        raise UserError(f"{problem}; reconstruct with the operator that measured")

    @property
    def measurement_shape(self) -> tuple[int, ...] | None:
        """What follows (N, C) in the shape of the measurements; None where only measuring would tell."""
        return None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Measurements ``A x`` of images ``(N, C, H, W)``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection ``A^T y``, images ``(N, C, H, W)``."""

    @abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """Pseudo-inverse ``A^+ y``: the least-squares image of smallest norm, ``(N, C, H, W)``."""

    @abstractmethod
    def resized(self, height: int, width: int) -> MeasurementOperator:
        """The same sampling for images of another size."""

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """The facts that determine the operator, ready for JSON: kind, ratio, seed or sha256, sizes."""

    def normal(self, x: Tensor) -> Tensor:
        """``A^T A x`` for images ``(N, C, H, W)``."""
        # Two products with a matrix (M, n) cost 2 M n multiplications per signal, one with its Gram matrix n^2: more
        # for every ratio below 0.5. Above it, forming the Gram matrix costs what it would save on several images.
        return self.adjoint(self(x))

    def measure(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``A x`` plus white noise of standard deviation `noise_sigma`.

        Args:
            x: images ``(N, C, H, W)`` in [0, 1].
            generator: random state of the noise, on the CPU so that every device sees the same noise.
        """
        y = self(x)
        if self.noise_sigma == 0:
            return y
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        return y + self.noise_sigma * noise.to(y.device, non_blocking=True)

    def permuted(self, seed: int) -> MeasurementOperator:
        """The same kind of sampling of another random choice or order of the pixels.

        It is the operator itself where there is no such choice, as for blocks, or where it is the user's.
        """
        return self

    def with_noise(self, noise_sigma: float) -> Self:
        """The same operator, whose `measure` adds noise of another standard deviation."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other.noise_sigma = float(noise_sigma)
        other.derived = {}  # some of it depends on the noise
        return other

    @property
    def measured_ratio(self) -> float:
        """Measurements per pixel that are really taken; `ratio` is what was asked for.

        Of a matrix on short signals it is M / n, whatever padding adds at the border.
        """
        shape = self.measurement_shape
        if shape is None:
            nothing = torch.zeros(1, 1, *self.image_size, device=next((one.device for one in self.buffers()), None))
            shape = tuple(self(nothing).shape)
        return math.prod(shape) / math.prod(self.image_size)

    @property
    def padded_size(self) -> tuple[int, int]:
        """The image size that the sampling works on inside; larger than `image_size` where blocks need padding."""
        return self.image_size

    def padded(self) -> Self:
        """The operator on the zero-padded image. It takes the very same measurements."""
        if self.padded_size == self.image_size:
            return self
        return cast(Self, self.resized(*self.padded_size))

    def crop(self, x: Tensor) -> Tensor:
        """Cut images of `padded_size` back to `image_size`."""
        height, width = self.image_size
        return x[..., :height, :width]


def adjoint_error(operator: MeasurementOperator, x: Tensor, y: Tensor) -> float:
    """Relative error of ``<A x, y> = <x, A^T y>``; about the rounding unit for a correct operator.

    Args:
        x: images ``(N, C, H, W)``.
        y: measurements of the shape that ``operator(x)`` has.

    Returns:
        ``|<A x, y> - <x, A^T y>| / (|A x| |y|)``.
    """
    measured, image = operator(x), operator.adjoint(y)
    left = torch.sum(measured.conj() * y).real
    right = torch.sum(x.conj() * image).real
    return float((left - right).abs() / (measured.norm() * y.norm()))


class MatrixOperator(MeasurementOperator):
    """One matrix on many short signals cut from the image: blocks, columns, or permuted pixels.

    Subclasses say how an image falls into signals (`signals`) and how signals form an image (`image`); both
    are permutations of pixels, with zero padding and cropping where the signals do not tile the image.

    Measurements have the shape ``(N, C, L, M)``: L signals per channel, M measurements per signal.

    Attributes:
        matrix: ``(M, n)``; each signal of n samples gives M measurements.
        rows: what was computed of the matrix, shared by the operators that share it.
    """

    matrix: Tensor

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
            matrix: ``(M, n)``.
            image_size: (H, W).
            ratio: nominal ratio; M / n where it is not given.
            noise_sigma: see `MeasurementOperator`.
            source: where the matrix comes from (seed, or file and sha256), for `spec`.
        """
        super().__init__(image_size, matrix.shape[0] / matrix.shape[1] if ratio is None else ratio, noise_sigma)
        self.register_buffer("matrix", matrix)
        self.source = dict(source or {})
        self.rows = RowSpace()
        self._inverses: Remembered[list[tuple[Tensor, Tensor]]] = Remembered()

    @property
    def measured_ratio(self) -> float:
        return self.matrix.shape[0] / self.matrix.shape[1]

    @property
    def orthonormal(self) -> bool:
        """Whether the rows of the matrix are orthonormal, to the rounding of float32."""
        return self.rows.orthonormal(self.matrix)

    @abstractmethod
    def with_matrix(self, matrix: Tensor, ratio: float, noise_sigma: float) -> MatrixOperator:
        """An operator that cuts the image as this one does, and measures with another matrix ``(K, n)``."""

    def resized(self, height: int, width: int) -> MatrixOperator:
        other = self._for_size((height, width))
        if other.matrix is self.matrix:
            other.rows = self.rows  # what was computed of the matrix once
        return other

    @abstractmethod
    def _for_size(self, image_size: tuple[int, int]) -> MatrixOperator:
        """The same sampling for images of another size."""

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return math.prod(self.padded_size) // self.matrix.shape[1], self.matrix.shape[0]

    def check_images(self, x: Tensor) -> None:
        super().check_images(x)
        self._check_dtype(x, "images")

    def check_measurements(self, y: Tensor) -> None:
        super().check_measurements(y)
        self._check_dtype(y, "measurements")

    def _check_dtype(self, value: Tensor, name: str) -> None:
        if value.dtype != self.matrix.dtype:
            raise UserError(
                f"{name} are {value.dtype} and the operator's matrix {self.matrix.dtype}; "
                "convert one of them, as in x.float() or operator.double()"
            )

    @abstractmethod
    def signals(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` as signals ``(N, C, L, n)``, zero-padded."""

    @abstractmethod
    def image(self, signals: Tensor) -> Tensor:
        """Signals ``(N, C, L, n)`` as images ``(N, C, H, W)``, cropped. The adjoint of `signals`."""

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        return self.signals(x) @ self.matrix.T

    @full_precision
    def adjoint(self, y: Tensor) -> Tensor:
        return self.image(y @ self.matrix)

    @full_precision
    def pinv(self, y: Tensor) -> Tensor:
        # Where blocks are cut by the image's border, A differs from signal to signal: only the pixels inside count.
        # Rows kept in float32 are orthonormal to float32's rounding, which is too little in float64.
        if self.orthonormal and self.padded_size == self.image_size and y.dtype != torch.float64:
            return self.adjoint(y)
        inverses = self._inverses((self.matrix,), self._invert)
        if len(inverses) == 1:
            return self.image(y @ inverses[0][1].to(y).T)
        signals = y.new_empty(*y.shape[:-1], self.matrix.shape[1])
        for members, inverse in inverses:
            signals[:, :, members] = y[:, :, members] @ inverse.to(y).T
        return self.image(signals)

    def _invert(self) -> list[tuple[Tensor, Tensor]]:
        """Of each kind of signals their numbers, and the pseudo-inverse ``(n, M)`` of what measures them."""
        pixels = self.signals(torch.ones(1, 1, *self.image_size, dtype=self.matrix.dtype, device=self.matrix.device))
        masks, kinds = torch.unique(pixels[0, 0], dim=0, return_inverse=True)
        matrix, tolerance = self.matrix.double(), rank_tolerance(self.matrix)
        nothing = matrix.new_zeros(matrix.T.shape)
        places = [mask.nonzero()[:, 0] for mask in masks]
        inverses = [nothing.index_copy(0, inside, _pseudo_inverse(matrix[:, inside], tolerance)) for inside in places]
        return [((kinds == kind).nonzero()[:, 0], inverse) for kind, inverse in enumerate(inverses)]

    def _facts(self, kind: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "ratio": self.ratio,
            "rows": self.matrix.shape[0],
            "n": self.matrix.shape[1],
            **self.source,
        }


class SquareBlocksOperator(MatrixOperator):
    """An operator with a matrix on B^2 pixels at a time, of images that are padded with zeros to multiples of B.

    Attributes:
        block_size: B.
        grid: rows and columns of blocks in the padded image.
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
            matrix: ``(M, B^2)``.
            image_size: (H, W), any.
            ratio: nominal ratio; M / B^2 where it is not given.
            noise_sigma: see `MeasurementOperator`.
            source: seed, or file and sha256, for `spec`.

        Raises:
            UserError: if the number of columns is not the square of a block size.
        """
        super().__init__(matrix, image_size, ratio, noise_sigma, source)
        self.block_size = math.isqrt(matrix.shape[1])
        if self.block_size**2 != matrix.shape[1]:
            raise UserError(
                "a matrix for blocks has B*B columns, such as 1089 for 33x33 blocks and 1024 for 32x32; "
                f"this one has {matrix.shape[1]}"
            )
        height, width = self.image_size
        self.grid = (math.ceil(height / self.block_size), math.ceil(width / self.block_size))

    @property
    def padded_size(self) -> tuple[int, int]:
        return self.grid[0] * self.block_size, self.grid[1] * self.block_size

    def pad(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` with zeros at the bottom and at the right."""
        (height, width), (padded_height, padded_width) = self.image_size, self.padded_size
        if x.shape[-2:] != (height, width):
            raise ValueError(f"operator for {height}x{width} images was given {tuple(x.shape)}")
        return F.pad(x, (0, padded_width - width, 0, padded_height - height))


def _pseudo_inverse(rows: Tensor, tolerance: float) -> Tensor:
    """Pseudo-inverse ``(n, M)`` of rows ``(M, n)`` in float64, of any rank; n < M where the border cuts a block.

    Args:
        rows: ``(M, n)``.
        tolerance: singular values below this share of the largest are zeros.
    """
    tall = rows.shape[0] > rows.shape[1]
    q, r = torch.linalg.qr(rows if tall else rows.T)
    pivots = r.diagonal().abs()
    # QR takes a fraction of the time of singular values, but needs full rank. Cholesky is no faster and squares the
    # condition number, which is thousands where the border cuts smooth rows.
    if pivots.min() < FULL_RANK * pivots.max():
        general: Tensor = torch.linalg.pinv(rows, rtol=tolerance)
        return general
    inverse: Tensor = torch.linalg.solve_triangular(r, q.T, upper=True)
    return inverse if tall else inverse.T
