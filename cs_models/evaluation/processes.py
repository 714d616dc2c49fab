"""The processes that share an evaluation: Lightning Fabric's, or this one alone."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch

from cs_models.errors import UserError, first_line
from cs_models.launched import launched, local_rank
from cs_models.precision import is_no_tf32_advice


class Processes(Protocol):
    """What the loop asks of Fabric."""

    @property
    def device(self) -> torch.device:
        """That of this process."""

    @property
    def global_rank(self) -> int:
        """Number of this process."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    def launch(self) -> None:
        """Start the other processes, or join them."""

    def barrier(self) -> None:
        """Wait until all processes are here."""


@dataclass(frozen=True)
class OneProcess:
    """A process without others. Fabric would do no more for it, and takes three times as long to import as torch."""

    device: torch.device
    global_rank: int = 0
    world_size: int = 1

    def launch(self) -> None:
        """Nothing to start."""

    def barrier(self) -> None:
        """Nobody to wait for."""


def processes(device: torch.device, count: int) -> Processes:
    """The processes for so many devices, not yet launched.

    Raises:
        UserError: if a launcher started another number of processes.
    """
    if count == 1 and not launched():
        return OneProcess(device)
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(is_no_tf32_advice)
    # A process that has finished waits for the others, which may take hours more, at the end. All that they exchange is
    # which rows were asked for, from host to host: Gloo notices at once that a process is gone, NCCL after the timeout.
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=7)) if count > 1 else "auto"
    try:
        return Fabric(accelerator=device.type, strategy=strategy, devices=count)
    except (ValueError, RuntimeError) as error:  # SLURM started another number of processes
        raise UserError(f"--devices {count} cannot be had here: {first_line(error)}") from error


def is_first(count: int) -> bool:
    """Whether this is the first of so many processes, known before they meet, whoever started them."""
    if count == 1:
        return True
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def choose_device(name: str | None, devices: int = 1) -> torch.device:
    """The device of a name; without one, CUDA where there is a GPU.

    Of several GPUs each process takes its own, from the first method that it tries on.

    Raises:
        UserError: if there are not that many GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind = name or ("cuda" if available else "cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no Apple GPU that torch can use; use --device cpu")
    if kind != "cuda" and devices > max(64, 4 * (os.cpu_count() or 1)):
        raise UserError(f"--devices {devices} are too many processes for this machine")
    if kind == "cuda" and available < devices:
        raise UserError(f"{devices} CUDA device(s) asked for, {available} found; use --device cpu or fewer --devices")
    if kind != "cuda":
        return torch.device(kind)
    return torch.device(kind, local_rank() % available if devices > 1 else 0)
