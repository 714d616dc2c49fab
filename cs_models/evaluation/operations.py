"""Counting what a network computes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CountOperations(TorchDispatchMode):
    """While it is entered, adds up the multiplications and additions of matrix products, convolutions and attention.

    It counts what `torch.utils.flop_counter.FlopCounterMode` counts, by the same formulas, without a table by modules.

    Attributes:
        total: multiplications plus additions so far.
    """

    def __init__(self) -> None:
        super().__init__()
        # The formulas bring in Triton, which only the evaluation of networks needs.
        from torch.utils.flop_counter import flop_registry

        self.formulas = flop_registry
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler to keep it away from the method below, which takes longer than torch.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result
