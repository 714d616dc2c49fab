"""Orthonormal transforms in which images and signals are sparse: ``signal = D coefficients``, ``D^T D = I``.

The cosine transform is a dense product for short signals and an FFT for long ones: scipy's on the CPU, where it
is several times faster than torch's at sizes other than powers of two, and torch's elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import scipy.fft
import torch
from einops import rearrange
from torch import Tensor

from cs_models.numerics import for_good
from cs_models.precision import full_precision

DENSE_BELOW = 65  # up to 64 samples a matrix product beats every FFT


class OrthonormalTransform(ABC):
    """A square orthonormal map D between coefficients and signals of the same shape.

    Both directions keep the device and dtype of their input and are differentiable.
    """

    @abstractmethod
    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Signals ``D s`` of coefficients s; on the last dimension(s)."""

    @abstractmethod
    def analysis(self, signal: Tensor) -> Tensor:
        """Coefficients ``D^T x`` of signals x; on the last dimension(s)."""


class DCT(OrthonormalTransform):
    """The orthonormal DCT-II of the last dimension, of any length: columns as rows of a matrix, or 1-D signals."""

    def synthesis(self, coefficients: Tensor) -> Tensor:
        return idct(coefficients)

    def analysis(self, signal: Tensor) -> Tensor:
        return dct(signal)


class DCT2d(OrthonormalTransform):
    """The orthonormal 2-D DCT-II of the last two dimensions ``(..., H, W)``, of any size."""

    def synthesis(self, coefficients: Tensor) -> Tensor:
        return _Cosine.apply(coefficients, (-2, -1), True)

    def analysis(self, signal: Tensor) -> Tensor:
        return _Cosine.apply(signal, (-2, -1), False)


class FlatDCT(OrthonormalTransform):
    """The 1-D DCT of images ``(..., H, W)`` read as one signal, row after row."""

    def synthesis(self, coefficients: Tensor) -> Tensor:
        return idct(coefficients.flatten(-2)).view(coefficients.shape)

    def analysis(self, signal: Tensor) -> Tensor:
        return dct(signal.flatten(-2)).view(signal.shape)


class BlockDCT2d(OrthonormalTransform):
    """The 2-D DCT of every BxB block of images ``(..., H, W)``; H and W must be multiples of B.

    The coefficients of a block lie where the block lies.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._block = DCT2d()

    def synthesis(self, coefficients: Tensor) -> Tensor:
        return self._image(self._block.synthesis(self._blocks(coefficients)))

    def analysis(self, signal: Tensor) -> Tensor:
        return self._image(self._block.analysis(self._blocks(signal)))

    def _blocks(self, x: Tensor) -> Tensor:
        size = self.block_size
        if x.shape[-2] % size or x.shape[-1] % size:
            raise ValueError(f"image size {tuple(x.shape[-2:])} is no multiple of the block size {size}")
        return rearrange(x, "... (h p) (w q) -> ... h w p q", p=size, q=size)

    def _image(self, blocks: Tensor) -> Tensor:
        return rearrange(blocks, "... h w p q -> ... (h p) (w q)")


def dct(x: Tensor, dim: int = -1) -> Tensor:
    """Orthonormal DCT-II along `dim`, differentiable; `idct` undoes it."""
    return _Cosine.apply(x, (dim,), False)


def idct(x: Tensor, dim: int = -1) -> Tensor:
    """Inverse (and transpose) of `dct`, along `dim`."""
    return _Cosine.apply(x, (dim,), True)


@lru_cache(maxsize=16)
@for_good()
def dct_matrix(n: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """The orthonormal DCT-II as a matrix ``(n, n)``: ``dct(x) = C x``. Treat it as read-only."""
    frequency = torch.arange(n, dtype=torch.float64)[:, None]
    place = torch.arange(n, dtype=torch.float64)[None, :] + 0.5
    matrix = math.sqrt(2 / n) * torch.cos(math.pi / n * frequency * place)
    matrix[0] = math.sqrt(1 / n)
    return matrix.to(device=device, dtype=dtype)


class _Cosine(torch.autograd.Function):
    """DCT or its inverse along some dimensions; each is the gradient of the other."""

    @staticmethod
    @full_precision
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], inverse: bool) -> Tensor:
        ctx.dims, ctx.inverse = dims, inverse
        values = x.detach()
        for dim in dims:
            values = _cosine(values, dim, inverse, overwrite=dim != dims[0])
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Cosine.apply(gradients[0], ctx.dims, not ctx.inverse), None, None


def _cosine(x: Tensor, dim: int, inverse: bool, overwrite: bool) -> Tensor:
    """DCT or its inverse along one dimension; `overwrite` allows the result to take the place of x."""
    n = x.shape[dim]
    if n < DENSE_BELOW:
        matrix = dct_matrix(n, x.dtype, x.device)
        left = matrix.T if inverse else matrix
        if dim == -2:
            return left @ x
        return x @ left.T if dim == -1 else torch.movedim(torch.movedim(x, dim, -1) @ left.T, -1, dim)
    if x.device.type == "cpu":
        transform = scipy.fft.idct if inverse else scipy.fft.dct
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        workers = torch.get_num_threads()
        values = transform(wide.numpy(), axis=dim, norm="ortho", overwrite_x=overwrite, workers=workers)
        return torch.from_numpy(values).to(x.dtype)
    along = torch.movedim(x, dim, -1)
    return torch.movedim(_idct_by_fft(along) if inverse else _dct_by_fft(along), -1, dim)


def _twiddle(x: Tensor, n: int) -> Tensor:
    """``sqrt(2 / n) exp(-i pi k / 2n)`` for k = 0 .. n/2, the first divided by sqrt(2)."""
    k = torch.arange(n // 2 + 1, dtype=x.dtype, device=x.device)
    scale = torch.full_like(k, math.sqrt(2 / n))
    scale[:1].fill_(math.sqrt(1 / n))  # an item is set by a copy from the host, which waits for a GPU
    return torch.polar(scale, -math.pi / (2 * n) * k)


def _dct_by_fft(x: Tensor) -> Tensor:
    """DCT-II of the last dimension by one real FFT of the same length (Makhoul, 1980)."""
    n = x.shape[-1]
    spectrum = torch.fft.rfft(torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), dim=-1)) * _twiddle(x, n)
    return torch.cat((spectrum.real, -spectrum.imag[..., 1 : (n + 1) // 2].flip(-1)), dim=-1)


def _idct_by_fft(coefficients: Tensor) -> Tensor:
    """Inverse of `_dct_by_fft`, step by step."""
    n = coefficients.shape[-1]
    half = n // 2 + 1
    mirrored = torch.cat((torch.zeros_like(coefficients[..., :1]), coefficients[..., half - n % 2 :].flip(-1)), dim=-1)
    mirrored = torch.nn.functional.pad(mirrored, (0, half - mirrored.shape[-1]))
    if n % 2 == 0:
        # The middle frequency is its own mirror image.
        mirrored[..., -1] = coefficients[..., n // 2]
    spectrum = torch.complex(coefficients[..., :half], -mirrored) / _twiddle(coefficients, n)
    shuffled = torch.fft.irfft(spectrum, n=n)
    signal = torch.empty_like(coefficients)
    signal[..., ::2] = shuffled[..., : (n + 1) // 2]
    signal[..., 1::2] = shuffled[..., (n + 1) // 2 :].flip(-1)
    return signal
