"""Sampling matrices and masks that travel inside a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.block import BlockOperator
from cs_models.operators.fourier import FourierOperator
from cs_models.operators.matrices import rows_for_ratio, tensor_sha256
from cs_models.operators.remembered import Remembered


class CarriedSampling(nn.Module):
    """Block matrices, by their number of rows, and at most one Fourier mask, as buffers."""

    def __init__(self) -> None:
        super().__init__()
        # By name; what the hosts of GPUs would wait for at every image.
        self._sources: dict[str, Remembered[dict[str, Any]]] = defaultdict(Remembered)
        self._masked: Remembered[FourierOperator] = Remembered()
        self._equal: Remembered[bool] = Remembered()

    def add_matrix(self, matrix: Tensor) -> None:
        """Carry a block matrix ``(M, B^2)``; it replaces one with the same number of rows."""
        self.register_buffer(f"phi_{matrix.shape[0]}", matrix.float())

    def add_mask(self, mask: Tensor) -> None:
        """Carry a Fourier mask ``(H, W)``."""
        self.register_buffer("mask", mask.bool())

    def shapes(self) -> dict[str, list[int]]:
        """Name and shape of everything carried, for the header of a checkpoint."""
        return {name: list(tensor.shape) for name, tensor in self.named_buffers()}

    def make_room(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Register buffers of these names and shapes, to be filled by ``load_state_dict``."""
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(tuple(shape), dtype=torch.bool if name == "mask" else torch.float32))

    def operator(
        self, ratio: float, image_size: tuple[int, int], noise_sigma: float = 0.0
    ) -> MeasurementOperator | None:
        """The carried operator for a ratio, or None where none was carried for it.

        A matrix fits a ratio if its number of rows is within one of the rule's, as released matrices round
        differently; a mask fits if its share of true values is within a hundredth of the ratio.

        Raises:
            UserError: if the carried mask is for images of another size.
        """
        for name, tensor in self.named_buffers():
            if name == "mask":
                masked = self._mask_operator(tensor)
                if abs(masked.ratio - ratio) > 0.01:
                    continue
                if tuple(tensor.shape) != image_size:
                    raise UserError(
                        f"the checkpoint's mask is for {tensor.shape[0]}x{tensor.shape[1]} images; "
                        f"this one is {image_size[0]}x{image_size[1]}"
                    )
                operator = masked.with_noise(noise_sigma)
                operator.ratio = float(ratio)
                return operator
            if abs(tensor.shape[0] - rows_for_ratio(ratio, tensor.shape[1])) <= 1:
                return BlockOperator(tensor, image_size, ratio, noise_sigma, self._source(name, tensor))
        return None

    def holds(self, matrix: Tensor) -> bool:
        """Whether a matrix is the first one that is carried, to the rounding of float32."""
        own = next(self.buffers())
        if matrix is own:
            return True
        return self._equal((matrix, own), lambda: same_matrix(matrix, own))

    def ratios(self) -> list[float]:
        """The ratios of what is carried, rounded to a thousandth."""
        return sorted(
            round(tensor.float().mean().item() if name == "mask" else tensor.shape[0] / tensor.shape[1], 3)
            for name, tensor in self.named_buffers()
        )

    def _mask_operator(self, mask: Tensor) -> FourierOperator:
        return self._masked((mask,), lambda: FourierOperator(mask, source=self._source("mask", mask)))

    def _source(self, name: str, tensor: Tensor) -> dict[str, Any]:
        return self._sources[name]((tensor,), lambda: carried_source(tensor))


def carried_source(tensor: Tensor) -> dict[str, Any]:
    """How an operator's `spec` names a matrix or mask that a checkpoint brought."""
    return {"carried_by": "checkpoint", "sha256": tensor_sha256(tensor)}


def same_matrix(matrix: Tensor, own: Tensor) -> bool:
    """Whether two matrices are equal to the rounding of float32."""
    return matrix.shape == own.shape and torch.allclose(matrix.to(own), own, atol=1e-6)
