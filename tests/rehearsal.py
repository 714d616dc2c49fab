"""Everything that the project's tables name, run on a rehearsed device.

``python -m tests.rehearsal OUT.json MODEL`` writes what each case met: errors, and waits of the host for the device;
MODEL is the folder of a diffusion model. A case runs twice on the same objects, and the waits of the second run count:
what is compared, counted or copied once for an operator or a network costs nothing.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cs_models import metrics
from cs_models.errors import UserError
from cs_models.evaluation.tiles import Tiling, solve_in_tiles
from cs_models.operator_names import OPERATORS
from cs_models.operators import MeasurementOperator, make_operator
from cs_models.reconstruction import Reconstructor, Solution
from cs_models.training.module import ReconstructionModule
from cs_models.transforms.dct import DCT, BlockDCT2d, DCT2d, OrthonormalTransform
from cs_models.transforms.wavelets import Wavelet2d
from cs_models.zoo.checkpoints import MODELS
from cs_models.zoo.methods import METHODS, build_method
from tests.rehearsed_device import DEVICE, NAME, Rehearsal, Remote, allow_tf32, register
from tests.rehearsed_training import PRECISIONS, lightning_case
from tests.small_networks import SIZE, make_network, networks, numbers

LARGE = 72, 24  # where cosine transforms are FFTs
# Solvers run with fewer iterations.
SHORT = {"iterations": 4, "epochs": 4}
# How the names of cases in low precision end.
LOW = " bf16", " fp16"
TRANSFORMS: dict[str, OrthonormalTransform] = {
    "dct": DCT(), "dct2d": DCT2d(), "dct8": BlockDCT2d(8), "db4": Wavelet2d("db4", levels=2)
}  # fmt: skip

Case = Callable[[torch.device], object]
"""Runs something on a device; tensors that it returns are compared with those that the CPU gives."""


def operator_words(name: str) -> str:
    """An operator of small blocks where it has blocks."""
    return f"{name}:8" if name in ("block", "structured") else name


def main(words: Sequence[str]) -> int:
    """Run every case and write what it met."""
    out, model, *only = words
    register()
    allow_tf32()
    torch.set_num_threads(1)
    found = {name: rehearse(name, case) for name, case in cases(model, *only)}
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    return 0


def rehearse(name: str, case: Case) -> dict[str, Any]:
    """Errors, waits of the second run, and places that multiply inexactly or add in an order that changes."""
    torch.manual_seed(0)
    try:
        expected = case(torch.device("cpu")) if is_compared(name) else None
        with Rehearsal() as rehearsal:
            error = None
            if not name.endswith(LOW):  # of these the case before, on the same objects, was the first run
                torch.manual_seed(0)
                result = case(torch.device(DEVICE))
                error = None if expected is None else difference(result, expected)
                rehearsal.waits.clear()
            case(torch.device(DEVICE))
    except UserError as refusal:
        return {"refused": str(refusal)}
    except Exception as problem:
        return {"error": f"{type(problem).__name__}: {problem}\n{''.join(traceback.format_tb(problem.__traceback__))}"}
    waits = [[place, kind, count] for (place, kind), count in sorted(rehearsal.waits.items())]
    found = {"inexact": sorted(rehearsal.inexact), "scattered": sorted(rehearsal.scattered)}
    return {"error": error, "waits": waits, **found}


def is_compared(name: str) -> bool:
    """Whether the CPU runs a case too: not in low precision, which devices round differently, nor every choice."""
    return not name.endswith(LOW) and "=" not in name


def difference(result: object, expected: object, device: str = NAME) -> str | None:
    """What is wrong with the numbers; an accelerator takes other paths through the code.

    Args:
        result: of a case, on a type of device.
        expected: of the same case on the CPU.
        device: the type.
    """
    for found, wanted in zip(_tensors(result), _tensors(expected), strict=True):
        if found.device.type != device:
            return f"a result lies on {found.device}"
        numbers = found.inner if isinstance(found, Remote) else found.cpu()
        error = (numbers - wanted).norm() / wanted.norm()
        if not error < 0.02:  # iterations make more of how devices round
            return f"a result differs from that of the CPU by {float(error):.2g} of it"
    return None


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Solution):
        return [value.x.detach()]
    if isinstance(value, Tensor):
        return [value.detach()]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


class Kept:
    """One object for each device, made at the first use; what making it costs is not counted."""

    def __init__(self, make: Callable[[torch.device], Any]) -> None:
        self._make = make
        self._made: dict[torch.device, Any] = {}

    def __call__(self, device: torch.device) -> Any:
        if device not in self._made:
            self._made[device] = self._make(device)
        return self._made[device]


def cases(model: str, only: str = "") -> Iterator[tuple[str, Case]]:
    """Everything whose name begins with `only`, by name."""
    return ((name, case) for name, case in every_case(model, only) if name.startswith(only))


def every_case(model: str, only: str) -> Iterator[tuple[str, Case]]:
    for name in networks() if "network".startswith(only[:7]) else ():
        yield from network_cases(name)
    for name in OPERATORS:
        for case in (forward, adjoint, normal, pinv, measure, padded):
            yield f"operator {name} {case.__name__}", operator_case(name, case)
    for name in METHODS:
        for words in ("block", "column", "fourier"):
            yield f"method {name} {words}", method_case(name, words, model)
    for name, transform in TRANSFORMS.items():
        yield f"transform {name}", transform_case(transform)
    for name, function in public_functions(metrics):
        yield f"metric {name}", metric_case(function)
    yield "tiles", tiles_case()
    for fault in (copies, reads, leaves_behind, scatters):
        yield f"fault {fault.__name__}", operator_case("block", fault)
    for precision in PRECISIONS:
        yield f"lightning {precision}", lightning_case(precision)


# Networks


def network_cases(name: str) -> Iterator[tuple[str, Case]]:
    try:
        whole = make_network(name)
    except UserError as refusal:
        message = str(refusal)

        def refused(_: torch.device) -> None:
            raise UserError(message)

        yield f"network {name}", refused
        return
    whole.ema = ModelEmaV3(whole.network, decay=0.9).requires_grad_(False)
    trained = Kept(lambda device: Network(copy.deepcopy(whole), device))
    yield f"network {name} training", lambda device: trained(device).training()
    if name in MODELS:
        kept = Kept(lambda device: Network(copy.deepcopy(whole), device))
        yield f"network {name} inference", lambda device: kept(device).inference()
        yield f"network {name} inference bf16", lambda device: kept(device).inference(torch.bfloat16)
        yield f"network {name} inference fp16", lambda device: kept(device).inference(torch.float16)
        yield f"network {name} training bf16", lambda device: trained(device).training(torch.bfloat16)


class Network:
    """A network on a device with an image, ready to reconstruct and to train."""

    def __init__(self, module: ReconstructionModule, device: torch.device) -> None:
        self.module = module.to(device)
        channels = getattr(module.config, "channels", 1)
        self.x = numbers(1, channels, *SIZE).to(device)
        self.operator = module.default_operator(0.25, SIZE).to(device)
        self.optimizer = torch.optim.AdamW(module.network.parameters(), 1e-3, fused=True)
        self.step = 0

    def inference(self, precision: torch.dtype = torch.float32) -> Tensor:
        y = self.operator(self.x)
        with self._autocast(precision):
            return self.module.reconstruct(y, self.operator)

    def _autocast(self, precision: torch.dtype) -> torch.autocast:
        return torch.autocast(self.x.device.type, precision, enabled=precision != torch.float32)

    def training(self, precision: torch.dtype = torch.float32) -> Tensor:
        """A step as `LightningTraining` makes it; what Lightning adds is a case of its own."""
        module, self.step = self.module, self.step + 1
        module.network.train()
        operator = module.training_operator(SIZE, self.step, self.x.device)
        generator = torch.Generator().manual_seed(self.step)
        with self._autocast(precision):
            y = operator.measure(self.x, generator)
            loss = module.training_loss(self.x, y, operator, self.step, generator)
        module.monitored()
        loss.backward()
        # Of several processes each would wait for these gradients of the others, or look for them in every step.
        unused = [name for name, one in module.network.named_parameters() if one.requires_grad and one.grad is None]
        assert not unused, f"without a gradient: {unused}"
        nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        module.constrain()
        assert isinstance(module.ema, ModelEmaV3)
        module.ema.update(module.network, step=self.step)
        return loss


# Operators, methods, transforms, metrics


@dataclass
class Measured:
    """An operator on a device with an image and its measurements."""

    operator: MeasurementOperator
    x: Tensor
    y: Tensor


def measured(name: str, size: tuple[int, int] = SIZE, noise_sigma: float = 0.0) -> Kept:
    def make(device: torch.device) -> Measured:
        operator = make_operator(operator_words(name), 0.25, size, noise_sigma=noise_sigma).to(device)
        x = numbers(1, 1, *size).to(device)
        return Measured(operator, x, operator(x))

    return Kept(make)


def forward(on: Measured) -> Tensor:
    return on.operator(on.x)


def adjoint(on: Measured) -> Tensor:
    return on.operator.adjoint(on.y)


def normal(on: Measured) -> Tensor:
    return on.operator.normal(on.x)


def pinv(on: Measured) -> Tensor:
    return on.operator.pinv(on.y)


def measure(on: Measured) -> Tensor:
    return on.operator.measure(on.x, torch.Generator().manual_seed(0))


def padded(on: Measured) -> Tensor:
    return on.operator.padded().adjoint(on.y)


def copies(on: Measured) -> Tensor:
    """What must be found: a copy to the host and back."""
    return on.operator(on.x.cpu().to(on.x.device, non_blocking=True))


def reads(on: Measured) -> Tensor:
    """What must be found: a number that the host reads."""
    return on.operator(on.x) if bool((on.x < 2).all()) else on.y


def leaves_behind(on: Measured) -> Tensor:
    """What must be found: a tensor that stays on the CPU."""
    return on.operator(on.x) + torch.zeros(on.y.shape)


def scatters(on: Measured) -> Tensor:
    """What must be found: a gradient that is added up where an index tells."""
    x = on.x.clone().requires_grad_()
    order = torch.arange(x.shape[-1]).flip(0).to(x.device, non_blocking=True)
    return torch.autograd.grad(x[..., order].sum(), x)[0]


def operator_case(name: str, case: Callable[[Measured], Tensor]) -> Case:
    kept = measured(name, LARGE, noise_sigma=0.01)
    return lambda device: case(kept(device))


def method_case(name: str, words: str, model: str) -> Case:
    kept = measured(words)
    solvers = Kept(lambda _: make_method(name, model))
    return lambda device: solvers(device).solve(kept(device).y, kept(device).operator)


def make_method(name: str, model: str) -> Reconstructor:
    try:
        solver = build_method(name, 0.25)
    except UserError:  # it needs a diffusion model
        solver = build_method(f"{name}:model={model}:steps=3", 0.25)
    for setting, value in SHORT.items():
        if hasattr(solver, setting):
            setattr(solver, setting, value)
    return solver


def transform_case(transform: OrthonormalTransform) -> Case:
    kept = Kept(lambda device: numbers(2, *LARGE).to(device))
    return lambda device: [transform.analysis(kept(device)), transform.synthesis(kept(device))]


def public_functions(module: Any) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not name.startswith("_"):
            yield name, function


def metric_case(function: Callable[..., Tensor]) -> Case:
    of_images = "(N, C, H, W)" in (function.__doc__ or "")
    shape = (2, 1, *LARGE) if of_images else (2, LARGE[0])
    pairs = sum(
        parameter.default is inspect.Parameter.empty for parameter in inspect.signature(function).parameters.values()
    )

    def make(device: torch.device) -> list[Tensor]:
        x = numbers(*shape)
        return [tensor.to(device) for tensor in (x, (x + 0.1 * x.flip(-1)))[:pairs]]

    kept = Kept(make)
    return lambda device: function(*kept(device))


def tiles_case() -> Case:
    kept = measured("block", LARGE)
    solver = build_method("backprojection", 0.25)
    return lambda device: solve_in_tiles(solver, kept(device).y, kept(device).operator, Tiling(40, 8))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
