"""An accelerator that this machine lacks, rehearsed with real numbers: tensors lie on the CPU and say that they do not.

Every operation on them is checked as CUDA would check it, and is carried out on the CPU. What is noted: operands on
different devices, and every wait of the host for the device, with the place in `cs_models` that asked for it:

* "read": a value, or a number of values, that the host must know (``.item()``, ``bool``, ``nonzero``, a mask as index);
* "to host": a copy to the CPU;
* "from host": a copy from the CPU that is not ``non_blocking``, for which CUDA finishes all earlier work first.

The device claims a name of torch for good, so this belongs into a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Self
from unittest.mock import patch

import torch
import torch.utils.backend_registration as backends
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

PACKAGE = f"{Path(__file__).resolve().parent.parent / 'cs_models'}{os.sep}"
NAME = "npy"
DEVICE = f"{NAME}:0"

ASKING = "all_settled"  # what asks for others; they are named

aten = torch.ops.aten
# What the host must know the values of, or the number of results.
READS = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.nonzero_numpy, aten.masked_select,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount,
    aten._linalg_check_errors, aten._linalg_eigh, aten._linalg_svd, aten.linalg_eig, aten.linalg_lstsq,
}  # fmt: skip
# What CUDA adds up in an order that changes, or sorts for that, and what it refuses where all must be deterministic.
SCATTERED = {
    aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_, aten.scatter_reduce, aten.scatter_reduce_,
    aten.put, aten.put_, aten.histc, aten.bincount, aten.upsample_linear1d_backward, aten.upsample_bilinear2d_backward,
    aten.upsample_bicubic2d_backward, aten.reflection_pad1d_backward, aten.reflection_pad2d_backward,
    aten.replication_pad2d_backward, aten._adaptive_avg_pool2d_backward, aten.adaptive_max_pool2d_backward,
    aten.grid_sampler_2d_backward, aten.max_unpool2d, aten.index_select_backward,
}  # fmt: skip
COPIES = {aten.copy_, aten._to_copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_}
ACCUMULATING = {aten.index_put, aten.index_put_, aten._index_put_impl_}
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.convolution, aten.mv, aten.dot}
NOTED = READS | SCATTERED | COPIES | INDEXED | ACCUMULATING | PRODUCTS
# What CUDA's autocast casts to the lower precision, and what to float32, of all that occurs here.
LOWER = (
    "conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d", "conv_transpose1d", "conv_transpose2d.input",
    "linear", "matmul", "mm", "bmm",
    "addmm", "baddbmm", "addbmm", "prelu", "scaled_dot_product_attention",
)  # fmt: skip
WIDER = (
    "mse_loss", "l1_loss", "layer_norm", "group_norm", "softmax.int", "log_softmax.int", "norm.Scalar", "exp", "log",
    "cumsum", "cumprod", "softplus", "rsqrt", "reciprocal", "pow.Tensor_Scalar", "sum", "sum.dim_IntList", "prod",
)  # fmt: skip


def supported() -> bool:
    """Whether this torch can rehearse a device."""
    return hasattr(backends, "_setup_privateuseone_for_python_backend")


class _Module(backends._DummyBackendModule):
    """What stands for ``torch.cuda``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        yield

    def synchronize(self, device: object = None) -> None:
        pass


_libraries: list[torch.library.Library] = []


def register() -> None:
    """Let torch know the device, with CUDA's rules of autocast."""
    backends._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    everything, operations = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, lower in ((LOWER, True), (WIDER, False)):
        for name in names:
            packet, _, overload = name.partition(".")
            function = getattr(getattr(aten, packet), overload or "default")
            operations.impl(function, _autocast(function, lower), "AutocastPrivateUse1")
    _libraries.extend([everything, operations])


def _autocast(function: Callable[..., Any], lower: bool) -> Callable[..., Any]:
    def cast(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(NAME) if lower else torch.float32)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return function(*_each(cast, args), **_each(cast, kwargs))

    return wrapped


class Remote(torch.Tensor):
    """A tensor that claims to lie on the rehearsed device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        strided = inner.layout == torch.strided
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()} if strided else {}
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, layout=inner.layout, device=DEVICE, **place
        )
        tensor.inner = inner
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"Remote({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside a rehearsal")


class WrongDeviceError(RuntimeError):
    """Operands on different devices, or something else that an accelerator refuses."""


def _from_numbers(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor``, which makes tensors on the CPU and copies them below of where a dispatch mode looks."""

    def wrapped(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return wrapped


class Rehearsal(TorchDispatchMode):
    """In this context ``torch.device("npy:0")`` works.

    Attributes:
        waits: (place, kind) of each wait of the host, and how often.
        inexact: places in operators and transforms that multiplied while TF32 was allowed.
        scattered: places that added numbers up where an index told to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.inexact: set[str] = set()
        self.scattered: set[str] = set()
        self._makers = patch.multiple(
            torch, tensor=_from_numbers(torch.tensor), as_tensor=_from_numbers(torch.as_tensor)
        )

    def __enter__(self) -> Self:
        self._makers.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._makers.stop()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to keep that from each operation takes as long as some of them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors: list[Tensor] = []

        def near(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor.inner if type(tensor) is Remote else tensor

        near_args, near_kwargs = _each(near, args), _each(near, kwargs)
        remote = Remote in map(type, tensors)
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        there = remote if target is None else target.type == NAME
        if not remote and not there:
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is aten._fused_sdp_choice:
            return 0  # attention from plain products
        self._check(packet, tensors, args, kwargs, there)
        if packet in NOTED:
            self._note(packet, tensors, args, kwargs, there)
        if target is not None:
            near_kwargs["device"] = torch.device("cpu")
        near_kwargs.pop("pin_memory", None)
        result = func(*near_args, **near_kwargs)
        if packet is aten.copy_:
            return args[0]
        if not there:
            return result
        wrapped = _each(Remote, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if remote and _aliases(func) else wrapped

    def _check(self, packet: Any, tensors: list[Tensor], args: Any, kwargs: dict[str, Any], there: bool) -> None:
        """Refuse what CUDA refuses."""
        strangers = [tensor for tensor in tensors if type(tensor) is not Remote and tensor.ndim > 0]
        mixed = 0 < len(strangers) < len(tensors)
        if mixed and packet not in COPIES | INDEXED:
            raise WrongDeviceError(f"{packet} at {place()}: operands on {NAME} and on the CPU")
        if mixed and packet in INDEXED and tensors[0] is strangers[0]:
            raise WrongDeviceError(f"{packet} at {place()}: an index on {NAME} into a tensor on the CPU")
        generator = kwargs.get("generator")
        if there and generator is not None and generator.device.type == "cpu":
            raise WrongDeviceError(f"{packet} at {place()}: a generator on the CPU for numbers on {NAME}")

    def _note(self, packet: Any, tensors: list[Tensor], args: Any, kwargs: dict[str, Any], there: bool) -> None:
        if packet is aten._to_copy:
            source, target, non_blocking = tensors[0], there, kwargs.get("non_blocking", False)
            self._note_copy(isinstance(source, Remote), target, non_blocking)
        elif packet is aten.copy_:
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            self._note_copy(isinstance(args[1], Remote), isinstance(args[0], Remote), non_blocking)
        elif packet in READS or _counts_places(packet, args):
            self.waits[place(), "read"] += 1
        elif packet in INDEXED and not all(isinstance(tensor, Remote) for tensor in tensors):
            self.waits[place(), "from host"] += 1
        if packet in SCATTERED or _accumulates(packet, args):
            self.scattered.add(place())
        if (
            packet in PRODUCTS
            and tensors[0].dtype == torch.float32
            and _allows_tf32()
            and (here := place()).startswith(("operators/", "transforms/"))
        ):
            self.inexact.add(here)

    def _note_copy(self, from_device: bool, to_device: bool, non_blocking: bool) -> None:
        if from_device and not to_device:
            self.waits[place(), "to host"] += 1
        elif to_device and not from_device and not non_blocking:
            self.waits[place(), "from host"] += 1


def _each(change: Callable[[Tensor], Any], value: Any) -> Any:
    """A nest of arguments with its tensors changed; torch's own function for it takes most of a rehearsal's time."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_each(change, item) for item in value])
    return {key: _each(change, item) for key, item in value.items()} if isinstance(value, dict) else value


@cache
def _aliases(func: Any) -> bool:
    """Whether results share memory with arguments."""
    return any(result.alias_info is not None for result in func._schema.returns)


def _counts_places(packet: Any, args: Any) -> bool:
    """Whether an index is a mask, whose true values must be counted; filling under a mask needs no count."""
    if packet not in INDEXED:
        return False
    masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return masked and not (len(args) > 2 and args[2].numel() == 1)


def _accumulates(packet: Any, args: Any) -> bool:
    return packet in ACCUMULATING and len(args) > 3 and bool(args[3])


def _allows_tf32() -> bool:
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


def allow_tf32() -> None:
    """The least exact that a user may have chosen."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def place() -> str:
    """The innermost function of `cs_models` that is running, as ``solvers/iht.py:IHT.solve``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE) and frame.f_code.co_name != ASKING:
            return f"{path.removeprefix(PACKAGE).replace(os.sep, '/')}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "elsewhere"
