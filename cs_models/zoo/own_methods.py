"""Networks and solvers of the user's own, behind the interface of everything that reconstructs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Reconstructor, Solution, check_finite
from cs_models.training.module import ReconstructionModule
from cs_models.zoo.checkpoints import load_checkpoint
from cs_models.zoo.own_code import OwnCode
from cs_models.zoo.settings import parameters_of, typed_settings

# What an object may have, in the order in which it is looked for, and what that is called with.
INTERFACES = {"solve": ("y", "operator"), "reconstruct": ("y", "operator"), "__call__": ("y", "A", "At")}
EXPECTED = "solve(y, operator), reconstruct(y, operator), or a call with (y, A, At)"


class OwnMethod(Reconstructor):
    """Any object that reconstructs.

    Attributes:
        target: has ``reconstruct(y, operator)`` or ``solve(y, operator)``, or is called with ``(y, A, A^T)``.
        title: what messages call it.
        modules: the networks that were found in it.
    """

    def __init__(self, target: Any, title: str) -> None:
        """
        Args:
            target: see above.
            title: what messages call it.

        Raises:
            UserError: if the target can do none of these.
        """
        self.target = target
        self.title = title
        self._interface = next((name for name in INTERFACES if hasattr(target, name)), None)
        if self._interface is None:
            raise UserError(f"{title} gives a {type(target).__name__}, which has none of {EXPECTED}")
        # A network's call takes anything, and hands it to `forward`.
        called = "forward" if isinstance(target, nn.Module) and self._interface == "__call__" else self._interface
        _check_arguments(getattr(target, called), title, INTERFACES[self._interface])
        parts = list(contents(target))
        self.modules = [part.eval() for _, part in parts if isinstance(part, nn.Module)]
        # Before the first image, since methods may keep what they computed.
        digests = {name: _sha256(part) for name, part in parts}
        self._weights = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    @torch.no_grad()
    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """Reconstruct without gradients, which ``torch.enable_grad()`` in the user's code turns on.

        Raises:
            UserError: if the result is no tensor ``(N, C, H, W)``.
        """
        solution = self._called(y, operator)
        expected = (*y.shape[:2], *operator.image_size)
        if not isinstance(solution.x, Tensor):
            raise UserError(f"{self.title} gives a {type(solution.x).__name__}; expected a tensor of shape {expected}")
        if solution.x.shape != expected:
            raise UserError(f"{self.title} gives the shape {tuple(solution.x.shape)}; expected (N, C, H, W) {expected}")
        return solution

    def _called(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        if self._interface in ("solve", "reconstruct"):
            result = getattr(self.target, self._interface)(y, operator)
            return result if isinstance(result, Solution) else Solution(result)
        x = self.target(rearrange(y, "n c ... -> (n c) 1 ..."), operator, operator.adjoint)
        whole = isinstance(x, Tensor) and x.ndim == 4 and len(x) == y.shape[0] * y.shape[1]
        return Solution(rearrange(x, "(n c) 1 h w -> n c h w", c=y.shape[1]) if whole and x.shape[1] == 1 else x)

    def check_result(self, x: Tensor) -> None:
        if x.device.type == "cpu":
            check_finite(x, self.title)

    def settings(self) -> dict[str, Any]:
        return {"weights": self._weights}


def _check_arguments(method: Callable[..., Any], title: str, arguments: tuple[str, ...]) -> None:
    """Raise UserError unless a method can be called so; those in C, which do not tell, pass."""
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError as error:
        raise UserError(
            f"{title}: it is called with ({', '.join(arguments)}) and does not take that: {error}"
        ) from None
    except ValueError:
        return


def build_own(code: OwnCode, name: str, settings: tuple[tuple[str, str], ...], ratio: float) -> Reconstructor:
    """What a file's function or class of this name makes.

    A subclass of `ReconstructionModule` takes the setting ``checkpoint``, a file of a training of that class. Random
    weights are those of seed 0.

    Args:
        code: the file.
        name: of a function or class in it, whose arguments are the settings; or of an object that reconstructs.
        settings: values as typed, by name.
        ratio: CS ratio, for a function or class that has an argument `ratio`.

    Raises:
        UserError: for an error in the file, a setting or checkpoint that does not fit, or an object that is no method.
    """
    target, title = code.attribute(name), f"{code.word}:{name}"
    with code.errors_in_one_line():
        if isinstance(target, type) and issubclass(target, ReconstructionModule):
            return _trained(target, title, dict(settings))
        if isinstance(target, type | types.FunctionType | functools.partial):
            target = _made(target, title, settings, ratio)
        elif settings:
            raise UserError(f"{title} is neither a function nor a class, so it takes no settings")
        return target if isinstance(target, ReconstructionModule) else OwnMethod(target, title)


def _trained(cls: type[ReconstructionModule], title: str, settings: dict[str, str]) -> ReconstructionModule:
    if "checkpoint" in settings and len(settings) == 1:
        return load_checkpoint(settings["checkpoint"], cls)
    if settings:
        raise UserError(f"{title} takes the setting checkpoint=FILE alone, whose header has the others")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls().eval()  # type: ignore[call-arg]


def _made(make: Callable[..., Any], title: str, settings: tuple[tuple[str, str], ...], ratio: float) -> Any:
    missing = sorted(getattr(make, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"class {title} does not define {', '.join(missing)}")
    parameters = parameters_of(make, title)
    values = typed_settings(make, title, settings)
    if "ratio" in parameters:
        values.setdefault("ratio", ratio)
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and key not in values
    ]
    if needed:
        raise UserError(f"{title} needs {', '.join(needed)}: give module:{title}:{needed[0]}=VALUE, or a default")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(**values)


def contents(value: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """The networks, tensors and arrays that an object holds, with their places: what its results depend on.

    Attributes, containers, bound objects and the variables that a function was defined among are searched.
    """
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module | Tensor):
        yield name, value
        return
    if isinstance(value, np.ndarray):
        if value.dtype != object:
            yield name, torch.from_numpy(np.frombuffer(f"{value.dtype}".encode() + value.tobytes(), np.uint8).copy())
        return
    for key, part in _parts(value):
        yield from contents(part, f"{name}.{key}", seen)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, type | types.ModuleType | str | bytes):
        return []
    if isinstance(value, dict):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [(str(index), part) for index, part in enumerate(value)]
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return [(name, cell.cell_contents) for name, cell in cells if cell != types.CellType()]
    if isinstance(value, types.MethodType):
        return [("self", value.__self__)]
    if isinstance(value, functools.partial):
        return [("function", value.func), ("arguments", value.args), ("keywords", value.keywords)]
    return list(getattr(value, "__dict__", {}).items())


def _sha256(part: nn.Module | Tensor) -> str:
    """Of a tensor's values, or of a network's weights with their names; any dtype."""
    if isinstance(part, nn.Module):
        digests = {key: _sha256(value) for key, value in part.state_dict().items() if isinstance(value, Tensor)}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    raw = part.detach().cpu().resolve_conj().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{part.dtype} {tuple(part.shape)}".encode() + raw).hexdigest()
