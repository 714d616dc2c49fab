"""Which precision a device computes in natively."""

from __future__ import annotations

import os
import platform
from typing import Literal

import torch

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
