"""Orthonormal 2-D wavelets with periodic borders, on any device; the filters are PyWavelets'."""

from __future__ import annotations

from functools import lru_cache

import pywt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cs_models.errors import UserError, nearest
from cs_models.numerics import for_good
from cs_models.precision import full_precision
from cs_models.transforms.dct import OrthonormalTransform

# PyWavelets calls dmey orthogonal too, but its filter is cut off and so misses it by 1e-3.
ORTHOGONAL_FAMILIES = ("haar", "db", "sym", "coif")


class Wavelet2d(OrthonormalTransform):
    """The fast wavelet transform of the last two dimensions ``(..., H, W)``.

    The coefficients of level j fill the upper left ``(H / 2^j, W / 2^j)`` corner in the usual nested order: the
    coarse image in the corner, then its horizontal, vertical and diagonal details. A level is a strided
    convolution with periodic borders, hence square and orthonormal.
    """

    def __init__(self, name: str = "db4", levels: int = 4) -> None:
        """
        Args:
            name: an orthogonal wavelet of PyWavelets: haar, dbN, symN or coifN.
            levels: halvings; H and W must be multiples of ``2^levels``.

        Raises:
            UserError: for a name that is no orthogonal wavelet.
        """
        names = [wave for family in ORTHOGONAL_FAMILIES for wave in pywt.wavelist(family)]
        if name not in names:
            raise UserError(f"'{name}' is no orthogonal wavelet{nearest(name, names)}")
        self.name = name
        self.levels = levels

    def analysis(self, signal: Tensor) -> Tensor:
        self._check(signal)
        coefficients = signal.clone()
        height, width = signal.shape[-2:]
        for _ in range(self.levels):
            corner = coefficients[..., :height, :width]
            corner.copy_(self._split(self._split(corner).mT).mT)
            height, width = height // 2, width // 2
        return coefficients

    def synthesis(self, coefficients: Tensor) -> Tensor:
        self._check(coefficients)
        signal = coefficients.clone()
        for level in reversed(range(self.levels)):
            corner = signal[..., : signal.shape[-2] >> level, : signal.shape[-1] >> level]
            corner.copy_(self._join(self._join(corner.mT.clone()).mT))  # a copy, which autograd may keep
        return signal

    def _check(self, x: Tensor) -> None:
        unit = 2**self.levels
        if x.shape[-2] % unit or x.shape[-1] % unit:
            raise UserError(
                f"{self.levels} wavelet levels need sides that are multiples of {unit}, "
                f"got {x.shape[-2]}x{x.shape[-1]}; use transform=dct or crop the image"
            )

    @full_precision
    def _split(self, x: Tensor) -> Tensor:
        """Low and high half of the last dimension, side by side."""
        kernel = _filters(self.name, x.dtype, x.device)
        taps, length = kernel.shape[-1], x.shape[-1]
        # The border may be longer than the signal, which torch's circular padding refuses.
        wrapped = x[..., _around(length + taps - 2, length, x.device)]
        rows = wrapped.reshape(-1, 1, wrapped.shape[-1])
        bands = F.conv1d(rows, kernel, stride=2)
        return rearrange(bands, "r band k -> r (band k)").reshape(x.shape)

    @full_precision
    def _join(self, x: Tensor) -> Tensor:
        """The adjoint, and inverse, of `_split`."""
        kernel = _filters(self.name, x.dtype, x.device)
        length = x.shape[-1]
        bands = rearrange(x.reshape(-1, length), "r (band k) -> r band k", band=2)
        wrapped = F.conv_transpose1d(bands, kernel, stride=2)[:, 0]
        places = _around(wrapped.shape[-1], length, x.device)
        return wrapped.new_zeros(len(wrapped), length).index_add_(1, places, wrapped).reshape(x.shape)


@lru_cache(maxsize=64)
@for_good()
def _around(count: int, length: int, device: torch.device) -> Tensor:
    """The first numbers of 0 .. length - 1, 0 .. length - 1, and so on, ``(count,)``. Treat it as read-only."""
    return torch.arange(count, device=device) % length


@lru_cache(maxsize=16)
@for_good()
def _filters(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The low and the high filter of a wavelet, ``(2, 1, taps)``. Treat it as read-only."""
    wavelet = pywt.Wavelet(name)
    return torch.tensor([[wavelet.rec_lo], [wavelet.rec_hi]], dtype=torch.float64).to(device=device, dtype=dtype)
