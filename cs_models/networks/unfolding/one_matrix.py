"""Unfolding networks that are trained for one sampling matrix, which their checkpoints carry."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cs_models.errors import UserError
from cs_models.networks.unfolding.module import UnfoldingModule, UnfoldingTraining
from cs_models.networks.unfolding.recursion import UnfoldingNetwork
from cs_models.operators import BlockOperator, MeasurementOperator


class OneMatrixModule(UnfoldingModule):
    """An unfolding network for training at one ratio with one block matrix; it reconstructs from that alone.

    Attributes:
        title: what messages call the network.
        imported_with: options of the importer that bring the matrix.
    """

    any_operator = False
    learns_rows = False
    title: str
    imported_with = "--phi"

    def __init__(self, network: UnfoldingNetwork, config: Any, training: UnfoldingTraining) -> None:
        sampling = training.sampling
        if len(sampling.ratios) != 1 or sampling.matrices_per_ratio != 1:
            raise UserError(
                f"{self.title} is trained for one ratio and one matrix: give one sampling ratio, matrices_per_ratio 1"
            )
        super().__init__(network, config, training)

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        """As they are: it works with the matrix that it was trained for."""
        return y, operator

    def check_operator(self, operator: MeasurementOperator) -> None:
        if not self.carried.shapes():
            raise UserError(self._no_matrix)
        if not (isinstance(operator, BlockOperator) and self.carried.holds(operator.matrix)):
            raise UserError(
                f"this {self.title} was trained for one matrix, which its checkpoint carries "
                f"(ratio {self.carried.ratios()[0]:g}); it takes no other operator"
            )

    def default_operator(
        self, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> MeasurementOperator:
        carried = self.carried.operator(ratio, image_size, noise_sigma)
        if carried is not None:
            return carried
        if not self.carried.shapes():
            raise UserError(self._no_matrix)
        raise UserError(
            f"this {self.title} was trained for ratio {self.carried.ratios()[0]:g} alone; it has no matrix for "
            f"{ratio:g}"
        )

    @property
    def _no_matrix(self) -> str:
        return (
            f"this {self.title} checkpoint carries no sampling matrix, and the network works with its own only; "
            f"import it again with {self.imported_with}"
        )
