"""What training's processes must know of their devices and of each other, without keeping the devices idle."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class HostCopy:
    """A number on its way from the device, for which the host waits only when it asks.

    The copy is put into the device's queue where it is made: what is queued after that, such as a backward pass, keeps
    the device busy while the host waits for the number and then queues more.
    """

    def __init__(self, value: Tensor) -> None:
        """
        Args:
            value: a tensor of one number.
        """
        self._value = value.detach()
        self._arrived: torch.cuda.Event | None = None
        if value.is_cuda:
            self._value = self._value.to("cpu", non_blocking=True)  # into pinned memory
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(value.device))

    def read(self) -> Tensor:
        """The number, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value.cpu()


class Agreement:
    """Lets processes agree from host to host; a collective of GPUs would make every host wait for its device.

    To be made in all processes at once, after they have found each other. In a single process everybody agrees.
    """

    def __init__(self) -> None:
        self._shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = None
        if self._shared and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def all(self, holds: bool) -> bool:
        """Whether it holds in every process; to be asked in all of them."""
        if not self._shared:
            return holds
        votes = torch.tensor(int(holds))
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=self._group)
        return bool(votes)

    def any(self, holds: bool) -> bool:
        """Whether it holds in some process; to be asked in all of them."""
        return not self.all(not holds)
