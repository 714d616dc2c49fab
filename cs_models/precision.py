"""Which precision a device computes in natively, and the one place that decides about TF32."""

from __future__ import annotations

import functools
import logging
import os
import platform
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar

import torch
from torch import Tensor

Owner = TypeVar("Owner")
Rest = ParamSpec("Rest")

# Settings by which float32 keeps all of its bits.
EXACT = frozenset((False, "highest", "ieee", "none"))
# What bfloat16 costs where it is emulated: 32-channel 3x3 convolutions on an AVX2 processor.
EMULATED_BF16 = "about 15 times slower than float32"


def computes_bf16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 natively: faster than float32, and not by converting each number.

    CUDA devices do from compute capability 8.0 (Ampere) on; x86 processors with AVX512-BF16 or AMX, unless oneDNN is
    told by ``ONEDNN_MAX_CPU_ISA`` to do without; Arm processors under Linux by what torch reports. On Apple's
    processors torch has no fast kernels for it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or platform.system() == "Darwin":
        return False
    return _processor_has_bf16() and _onednn_may_use_bf16()


def _processor_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return any(present is True and "bf16" in name for name, present in torch.cpu.get_capabilities().items())
    # Older releases of torch know of x86 alone.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _onednn_may_use_bf16() -> bool:
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    return limit in ("ALL", "DEFAULT") or any(word in limit for word in ("BF16", "FP16", "AMX", "AVX10"))


def usual_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """The precision that networks run in by default: "bf16" where the device computes in it natively, else "fp32"."""
    return "bf16" if computes_bf16(device) else "fp32"


def is_no_tf32_advice(record: logging.LogRecord) -> bool:
    """A filter for Lightning's loggers, whose advice to allow TF32 is for programs and not for their users."""
    return "Tensor Cores" not in record.getMessage()


def forbid_tf32() -> None:
    """From now on float32 means float32, also in the products and convolutions of GPUs.

    cuDNN convolves in TF32 by default, which keeps 10 bits of the mantissa and costs hundredths of a dB; whoever wants
    speed asks for bfloat16. Training calls this, for its backward passes; all else that must be exact, operators and
    transforms and `Reconstructor.solve`, is in a `no_tf32` context.
    """
    by_older_names = "products" in _settings()
    _restore({"convolutions": False, "products": "highest"} if by_older_names else dict.fromkeys(_by_name(), "ieee"))


class no_tf32:
    """A context in which products and convolutions of float32 keep all of its bits; afterwards all is as it was.

    A compiled graph cannot change such settings; what is compiled goes by those outside of it.
    """

    _before: dict[str, Any] | None

    def __enter__(self) -> Self:
        self._before = None
        if not torch.compiler.is_compiling():
            before = _settings()
            if not EXACT.issuperset(before.values()):
                self._before = before
                forbid_tf32()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _restore(self._before)


def full_precision(
    method: Callable[Concatenate[Owner, Tensor, Rest], Tensor],
) -> Callable[Concatenate[Owner, Tensor, Rest], Tensor]:
    """Let a method compute in its operands' precision, under autocast and where TF32 is allowed too.

    Data consistency is cheap and precision-critical: a network's convolutions may run in bfloat16, A may not.
    """

    @functools.wraps(method)
    def wrapped(self: Owner, tensor: Tensor, *rest: Rest.args, **named: Rest.kwargs) -> Tensor:
        kind = tensor.device.type
        # To enter autocast's context takes as long as a small product.
        own = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
        with own, no_tf32():
            return method(self, tensor, *rest, **named)

    return wrapped


def _by_name() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {"conv": cudnn.conv, "rnn": cudnn.rnn, "matmul": torch.backends.cuda.matmul}  # type: ignore[attr-defined]


def _settings() -> dict[str, Any]:
    """By torch's older names, or by its newer ones where they were used, after which the older cannot be read."""
    try:
        return {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.get_float32_matmul_precision()}
    except RuntimeError:
        return {name: part.fp32_precision for name, part in _by_name().items()}


def _restore(settings: dict[str, Any]) -> None:
    if "products" in settings:
        torch.backends.cudnn.allow_tf32 = settings["convolutions"]
        torch.set_float32_matmul_precision(settings["products"])
        return
    for name, part in _by_name().items():
        part.fp32_precision = settings[name]
