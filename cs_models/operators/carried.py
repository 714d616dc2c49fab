"""Sampling matrices and masks that travel inside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.operators.base import MeasurementOperator
from cs_models.operators.block import BlockOperator
from cs_models.operators.fourier import FourierOperator
from cs_models.operators.matrices import rows_for_ratio, tensor_sha256


class CarriedSampling(nn.Module):
    """Block matrices, by their number of rows, and at most one Fourier mask, as buffers."""

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
                if abs(tensor.float().mean().item() - ratio) > 0.01:
                    continue
                if tuple(tensor.shape) != image_size:
                    raise UserError(
                        f"the checkpoint's mask is for {tensor.shape[0]}x{tensor.shape[1]} images; "
                        f"this one is {image_size[0]}x{image_size[1]}"
                    )
                return FourierOperator(tensor, ratio, noise_sigma, source=_source(tensor))
            if abs(tensor.shape[0] - rows_for_ratio(ratio, tensor.shape[1])) <= 1:
                return BlockOperator(tensor, image_size, ratio, noise_sigma, _source(tensor))
        return None

    def ratios(self) -> list[float]:
        """The ratios of what is carried, rounded to a thousandth."""
        return sorted(
            round(tensor.float().mean().item() if name == "mask" else tensor.shape[0] / tensor.shape[1], 3)
            for name, tensor in self.named_buffers()
        )


def _source(tensor: Tensor) -> dict[str, Any]:
    return {"carried_by": "checkpoint", "sha256": tensor_sha256(tensor)}
