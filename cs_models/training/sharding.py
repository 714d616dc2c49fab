"""Fully sharded data parallelism (FSDP): weights, gradients and optimiser states are split over the processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from cs_models.errors import UserError, first_line
from cs_models.training.checkpoint_io import UNREADABLE


class FSDP(ModelParallelStrategy):
    """Lightning's strategy for torch's `fully_shard`, over all processes, with checkpoints that are whole files."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Fill network and optimiser from a whole file.

        Raises:
            UserError: if the file is damaged; unlike with other strategies none is chosen in its place.
        """
        try:
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        except UNREADABLE as error:
            reason = first_line(error)
            raise UserError(f"checkpoint {checkpoint_path} is damaged or does not fit: {reason}") from error


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Split a network's weights over the processes of a mesh.

    It becomes one unit, which is gathered for a step as a whole: invertible wiring runs layers again during the
    backward pass, out of sight of the hooks that smaller units would rely on.
    """
    network.to(memory_format=torch.contiguous_format)
    fully_shard(network, mesh=mesh["data_parallel"])


def gather(network: nn.Module) -> None:
    """Let each process hold the whole of a split network, until `release`; any other is left as it is."""
    if isinstance(network, FSDPModule):
        network.unshard()


def release(network: nn.Module) -> None:
    """Undo `gather`."""
    if isinstance(network, FSDPModule):
        network.reshard()
