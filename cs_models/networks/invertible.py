"""Invertible wiring: any modules in a chain that keeps no activations for the backward pass.

A sequence of layers F_1 .. F_n works on a pair of tensors (x, h)::

    x' = (1 - v_i) F_i(x) + v_i h        h' = x

whatever F_i is, this is undone by::

    x = h'                               h = (x' - (1 - v_i) F_i(h')) / v_i

(Chen et al., "Invertible Diffusion Models for Compressed Sensing", TPAMI 2025, Sec. 3.2). The backward pass walks
the chain from its end, rebuilds each layer's input, runs that layer once more and differentiates it. What is kept
is the last pair, whatever the number of layers.

Rounding grows on the way back. An error d in x' returns as d / v, and one in h' as J d (1 - v) / v where J is
the layer's Jacobian, so the error of the pair grows by a factor g per layer, the larger root of
``g^2 = g (1 - v) |J| / v + 1 / v``: by ``1 / v`` for layers that change distances little (v = 0.5: 2 per layer,
1e-4 relative after 10 layers in float32), by more for steeper ones, by ``sqrt(1 / v)`` at least. The pair
therefore stays in float32 under autocast, or in float64 where asked, and v should stay away from zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import get_device_states, set_device_states

Context = tuple[Any, ...]

# Where training keeps every v, since rounding grows by about 1 / v per layer on the way back: gradients in float32 are
# off by some 1e-6 with every v at 0.5, by some 1e-4 with every v at 0.3.
V_MIN = 0.3


class InvertibleSequence(nn.Module):
    """Layers in a chain on a pair (x, h); see the module's text for the equations.

    Layers are called as ``layer(x, *context)`` and keep the shape of x. A layer's context is whatever else it
    reads. Tensors in it, and parameters of modules in it, receive gradients just like the layer's own
    parameters; anything else is handed on as it is. Nothing is read from elsewhere, so instances never meet.

    With ``invertible=True`` every layer runs twice in training, under the same autocast and random state, and
    must give the same result: no batch statistics, no state that changes in between. The gradients are those
    of the plain chain up to rounding. They are returned to autograd rather than written to ``.grad``, so hooks,
    DistributedDataParallel and gradient accumulation see nothing unusual.

    Attributes:
        layers: F_1 .. F_n. A module may occur several times. They get x in the dtype of `v`, so in float32 unless
            the module was cast.
        v: ``(n,)``, learnable.
        precision: least precision of the pair. float64 keeps long chains of steep layers exact and costs little
            where the pair is small.
        invertible: off, the same equations run under plain autograd, which keeps every activation.
    """

    def __init__(self, layers: Iterable[nn.Module], v: float = 0.5, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.v = nn.Parameter(torch.full((len(self.layers),), v))
        self.precision = precision
        self.invertible = True

    def forward(self, x: Tensor, h: Tensor, contexts: Sequence[Context] | None = None) -> tuple[Tensor, Tensor]:
        """The pair after all layers.

        Args:
            x: any shape.
            h: the shape of x.
            contexts: one tuple for each layer; None if no layer reads more than x.
        """
        dtype = torch.promote_types(self.v.dtype, self.precision)
        x, h = x.to(dtype), h.to(dtype)
        if self.invertible and torch.is_grad_enabled():
            calls, tensors = _collect(self._with_contexts(contexts))
            return _Invertible.apply(calls, x, h, self.v, *tensors)
        for (layer, context), v in zip(self._with_contexts(contexts), self.v, strict=True):
            x, h = _couple(layer(x.to(v.dtype), *context), h, v), x
        return x, h

    @torch.no_grad()
    def inverse(self, x: Tensor, h: Tensor, contexts: Sequence[Context] | None = None) -> tuple[Tensor, Tensor]:
        """The pair that `forward` maps to (x, h), up to rounding. Gives no gradients."""
        for (layer, context), v in zip(reversed(self._with_contexts(contexts)), reversed(self.v), strict=True):
            x, h = h, _uncouple(layer(h.to(v.dtype), *context), x, v)
        return x, h

    def _with_contexts(self, contexts: Sequence[Context] | None) -> list[tuple[nn.Module, Context]]:
        return list(zip(self.layers, contexts if contexts is not None else [()] * len(self.layers), strict=True))


class Wired(nn.Module):
    """An `InvertibleSequence` between single tensors: the pair starts as (x, w_in x) and ends as x + w_out h.

    Attributes:
        sequence: the layers.
        input_scale: w_in, learnable, 1 at the start.
        output_scale: w_out, learnable, 0 at the start.
    """

    def __init__(self, layers: Iterable[nn.Module], v: float = 0.5, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.sequence = InvertibleSequence(layers, v, precision)
        self.input_scale = nn.Parameter(torch.ones(1))
        self.output_scale = nn.Parameter(torch.zeros(1))

    @property
    def layers(self) -> nn.ModuleList:
        """F_1 .. F_n."""
        return self.sequence.layers

    def forward(self, x: Tensor, contexts: Sequence[Context] | None = None) -> Tensor:
        """The result, of x's shape, at least in float32; contexts as in `InvertibleSequence`."""
        last, h = self.sequence(x, self.input_scale * x, contexts)
        return (last + self.output_scale * h).to(torch.promote_types(x.dtype, torch.float32))


class Chain(nn.Module):
    """Layers one after the other, called as `Wired` is but without pair and coupling: ``F_n(.. F_1(x))``.

    Plain autograd keeps every activation.

    Attributes:
        layers: F_1 .. F_n.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, contexts: Sequence[Context] | None = None) -> Tensor:
        """The result, of x's shape; contexts as in `InvertibleSequence`."""
        for layer, context in zip(self.layers, contexts or [()] * len(self.layers), strict=True):
            x = layer(x, *context)
        return x


@torch.no_grad()
def stabilise(network: nn.Module) -> None:
    """Project the coupling weights of every invertible sequence in a network to where inversion is stable."""
    for module in network.modules():
        if isinstance(module, InvertibleSequence):
            module.v.clamp_(min=V_MIN)


def _couple(value: Tensor, h: Tensor, v: Tensor) -> Tensor:
    """``(1 - v) value + v h``."""
    if value.shape != h.shape:
        raise ValueError(f"a wired layer must keep the shape of x: {tuple(h.shape)} became {tuple(value.shape)}")
    return torch.lerp(value.to(h.dtype), h, v.to(h.dtype))


def _uncouple(value: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """The h for which `_couple` gives x."""
    value = value.to(x.dtype)
    return torch.addcdiv(value, x - value, v.to(x.dtype))


@dataclass(frozen=True)
class _Slot:
    """Place of a tensor in the list of tensors that a sequence differentiates."""

    index: int


class _Bound(nn.Module):
    """A layer beside the modules of its context, so that one call can replace the parameters of all of them."""

    def __init__(self, layer: nn.Module, context: Context) -> None:
        super().__init__()
        self.layer = layer
        self.read = nn.ModuleList(item for item in context if isinstance(item, nn.Module))

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        return self.layer(x, *context)


@dataclass(frozen=True)
class _Call:
    """One layer and everything that it reads, with slots in place of what is differentiated."""

    bound: _Bound
    context: Context
    parameters: dict[str, _Slot]

    def __call__(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        context = [tensors[item.index] if isinstance(item, _Slot) else item for item in self.context]
        parameters = {name: tensors[slot.index] for name, slot in self.parameters.items()}
        return functional_call(self.bound, parameters, (x, *context), tie_weights=False)

    def slots(self) -> list[int]:
        """Indices of the different tensors that this layer reads."""
        read = (*self.context, *self.parameters.values())
        return sorted({item.index for item in read if isinstance(item, _Slot)})


def _collect(layers: Iterable[tuple[nn.Module, Context]]) -> tuple[list[_Call], list[Tensor]]:
    """Calls of the layers, and the different tensors among their contexts and trained parameters."""
    tensors: dict[Tensor, _Slot] = {}  # a tensor is hashed by identity

    def slot(tensor: Tensor) -> _Slot:
        return tensors.setdefault(tensor, _Slot(len(tensors)))

    calls = []
    for layer, context in layers:
        bound = _Bound(layer, context)
        calls.append(
            _Call(
                bound,
                tuple(slot(item) if isinstance(item, Tensor) else item for item in context),
                # Every name of a shared parameter, so that functional_call need not search for ties each time.
                {name: slot(p) for name, p in bound.named_parameters(remove_duplicate=False) if p.requires_grad},
            )
        )
    return calls, list(tensors)


class _Surroundings:
    """Autocast and random state at a layer's first run, for its second."""

    def __init__(self, device: torch.device) -> None:
        self.device_type = device.type
        self.modes = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in {"cpu", device.type}
        ]
        self.cpu_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(torch.empty(0, device=device))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of the first run, without autocast's memory of the weights that it has cast.

        A weight cast in a run without gradients must not serve a run with them, and the reverse would keep the
        graph of a layer alive.
        """
        with ExitStack() as stack:
            for kind, dtype, enabled in self.modes:
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Precision and random state of the first run; the caller's random state is left as it is."""
        with torch.random.fork_rng(self.devices, device_type=self.device_type), self.autocast():
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.device_states, device_type=self.device_type)
            yield


class _Invertible(torch.autograd.Function):
    """`InvertibleSequence.forward` with a backward pass that rebuilds the inputs of the layers."""

    @staticmethod
    def forward(
        ctx: Any, calls: list[_Call], x: Tensor, h: Tensor, v: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.calls, ctx.surroundings = calls, []
        x, h = x.detach(), h.detach()  # as what follows is; torch.compile would make a graph of its own for the first
        for call, v_i in zip(calls, v, strict=True):
            surroundings = _Surroundings(x.device)
            with surroundings.autocast():
                x, h = _couple(call(x.to(v.dtype), tensors), h, v_i), x
            ctx.surroundings.append(surroundings)
        ctx.save_for_backward(x, h, v, *tensors)
        return x, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        x, h, v, *tensors = ctx.saved_tensors
        # Stand-ins for the tensors, whose .grad sums what all layers give; the tensors themselves stay untouched.
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        grad_v = torch.zeros_like(v)
        for i in reversed(range(len(v))):
            point = h.detach().to(v.dtype).requires_grad_()
            with torch.enable_grad(), ctx.surroundings[i].restored():
                value = ctx.calls[i](point, leaves)
            x, h = h, _uncouple(value.detach(), x, v[i])
            grad_v[i] = torch.sum(grad_x * (h - value.detach()))
            wanted = [leaves[slot] for slot in ctx.calls[i].slots() if leaves[slot].requires_grad]
            torch.autograd.backward(value, ((1 - v[i]) * grad_x).to(value.dtype), inputs=[point, *wanted])
            grad_x, grad_h = grad_h if point.grad is None else grad_h + point.grad, v[i] * grad_x
        return None, grad_x, grad_h, grad_v, *(leaf.grad for leaf in leaves)
