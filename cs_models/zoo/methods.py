"""Every method that the benchmark knows by name, and how a word of the command line becomes a reconstructor."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from cs_models.errors import UserError, nearest
from cs_models.files import is_file, shipped
from cs_models.signatures import parameters

if TYPE_CHECKING:
    from cs_models.reconstruction import Reconstructor
    from cs_models.training.module import ReconstructionModule

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
ZOO = shipped("checkpoints")


@dataclass(frozen=True)
class Method:
    """A training-free method.

    Attributes:
        name: as it is typed.
        target: ``module:Class``, imported when the method is used; the constructor's arguments are its settings.
        summary: one line.
        operator: what it is measured with where nobody says, see `cs_models.operators.make_operator`.
    """

    name: str
    target: str
    summary: str
    operator: str = "block:33"


# Adding a training-free method is its file and one line here; a trained one is a file in checkpoints/.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("backprojection", "cs_models.solvers.linear:BackProjection", "A^T y"),
        Method("pinv", "cs_models.solvers.linear:PseudoInverse", "A^+ y, the image of smallest norm"),
        Method(
            "linear",
            "cs_models.solvers.linear:LinearEstimate",
            "linear estimate of least squared error, block by block",
        ),
        Method("omp", "cs_models.solvers.omp:OMP", "orthogonal matching pursuit on the DCT of blocks or columns"),
        Method("stomp", "cs_models.solvers.stomp:StOMP", "stagewise OMP, the CLOMP paper's OMP"),
        Method("sp", "cs_models.solvers.subspace_pursuit:SubspacePursuit", "subspace pursuit"),
        Method("cosamp", "cs_models.solvers.subspace_pursuit:CoSaMP", "compressive sampling matching pursuit"),
        Method("iht", "cs_models.solvers.iht:IHT", "iterative hard thresholding"),
        Method("niht", "cs_models.solvers.iht:NIHT", "normalised iterative hard thresholding"),
        Method("clomp", "cs_models.solvers.clomp:CLOMP", "coefficients learning with TV and local variance priors"),
        Method("ista", "cs_models.solvers.ista:ISTA", "proximal gradient descent on the l1 problem in a 2-D DCT"),
        Method("fista", "cs_models.solvers.ista:FISTA", "ISTA with momentum and restarts"),
        Method("lasso", "cs_models.solvers.ista:LASSO", "the l1 problem on the scale 0..255 with weight 5, by FISTA"),
        Method(
            "weighted_l1", "cs_models.solvers.ista:WeightedL1", "FISTA with a penalty that grows with the frequency"
        ),
        Method("owlqn", "cs_models.solvers.owlqn:OWLQN", "orthant-wise limited-memory quasi-Newton on the l1 problem"),
        Method(
            "pnp", "cs_models.solvers.pnp:PlugAndPlay", "plug-and-play ADMM with a translation-invariant DCT denoiser"
        ),
        Method("tv", "cs_models.solvers.tv:TotalVariation", "total variation by ADMM with exact steps"),
        Method(
            "ddnm",
            "cs_models.networks.diffusion.ddnm:DDNM",
            "sampling from a frozen diffusion model: ddnm:model=FOLDER",
        ),
    )
}


@dataclass(frozen=True)
class MethodSpec:
    """A method as the user wrote it: a name with settings, the name of a zoo model, or a checkpoint's path.

    Attributes:
        text: as typed.
        name: without settings.
        settings: values as typed, by name.
    """

    text: str
    name: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def training_free(self) -> bool:
        """Whether it is in `METHODS`; everything else is a checkpoint."""
        return self.name in METHODS


def parse_method(text: str) -> MethodSpec:
    """Read ``NAME``, ``NAME:key=value:key=value`` or the path of a checkpoint.

    Raises:
        UserError: for an unknown name, a missing file, an unknown setting, or settings that are not ``key=value``.
    """
    if text.endswith(CHECKPOINT_SUFFIXES):
        if not is_file(text):
            raise UserError(f"checkpoint not found: {text}")
        return MethodSpec(text, text)
    name, *parts = split_settings(text)
    if name not in METHODS and name not in zoo():
        raise UserError(f"unknown method '{name}'{nearest(name, [*METHODS, *zoo(), 'zoo'])}")
    if parts and name not in METHODS:
        raise UserError(f"method '{name}' is a trained network and takes no settings; got '{text}'")
    for part in parts:
        if "=" not in part:
            raise UserError(f"cannot read '{part}' in '{text}'; settings are written {name}:key=value:key=value")
    settings = tuple((key, value) for key, _, value in (part.partition("=") for part in parts))
    known = parameters(METHODS[name].target) if settings else None
    if known is not None:
        _check_settings(name, settings, known)
    return MethodSpec(text, name, settings)


def _check_settings(name: str, settings: Sequence[tuple[str, str]], known: Collection[str]) -> None:
    for key, _ in settings:
        if key not in known:
            if not known:
                raise UserError(f"method '{name}' has no settings; got '{key}'")
            raise UserError(f"method '{name}' has no setting '{key}'{nearest(key, known)}")


def split_settings(text: str) -> list[str]:
    """The parts of ``NAME:key=value:key=value``; the colon of a Windows path, as in ``C:\\models``, separates none."""
    return re.split(r":(?![\\/])", text)


def parse_methods(words: Sequence[str], ratios: Sequence[float]) -> list[tuple[MethodSpec, float]]:
    """Every method with every ratio; the word ``zoo`` stands for the trained networks that are shipped.

    Of the zoo, networks without weights for a ratio are passed over at that ratio.

    Raises:
        UserError: see `parse_method`.
    """
    pairs = []
    for word in words:
        pairs += zoo_pairs(ratios) if word == "zoo" else [(parse_method(word), ratio) for ratio in ratios]
    return list(dict.fromkeys(pairs))


def zoo_pairs(ratios: Sequence[float]) -> list[tuple[MethodSpec, float]]:
    """The networks that are shipped, each with those of the ratios that it has weights for.

    Raises:
        UserError: if there is none.
    """
    networks = zoo()
    if not networks:
        raise UserError(f"there are no networks in {ZOO}; reinstall cs-models, or name a checkpoint's path")
    pairs = []
    for name, files in networks.items():
        trained = {percent / 100 for percent in files if percent is not None}
        served = ratios if None in files else [ratio for ratio in ratios if ratio in trained]
        pairs += [(MethodSpec(name, name), ratio) for ratio in served]
    if ratios and not pairs:
        raise UserError(f"no shipped network has weights for ratio {', '.join(f'{ratio:g}' for ratio in ratios)}")
    return pairs


def load(name: str, ratio: float | None = None) -> ReconstructionModule:
    """A trained network by its name in the zoo, or from a file, in evaluation mode on the CPU.

    Args:
        name: as ``eval.py --list`` shows it, or the path of a `.safetensors` or `.ckpt` file.
        ratio: CS ratio, for a name with weights for each ratio.

    Raises:
        UserError: for an unknown name, a missing or unreadable file, or a ratio without weights.
    """
    from cs_models.zoo.checkpoints import load_checkpoint

    spec = parse_method(name)
    if spec.training_free:
        raise UserError(
            f"'{name}' needs no training, so there is nothing to load; see cs_models.zoo.methods.build_method"
        )
    if ratio is None and spec.name in zoo():
        files = zoo()[spec.name]
        if None not in files and len(files) > 1:
            known = ", ".join(f"{percent}" for percent in sorted(filter(None, files)))
            raise UserError(f"'{name}' has weights for {known} %; choose with ratio=")
        return load_checkpoint(files.get(None) or next(iter(files.values())))
    return load_checkpoint(checkpoint_path(spec, ratio or 0.0))


def zoo(folder: Path = ZOO) -> dict[str, dict[int | None, Path]]:
    """The checkpoints that are shipped: by model name, then by the percentage they were trained for (None: any).

    ``checkpoints/NAME.safetensors`` serves every ratio, ``checkpoints/NAME_10.safetensors`` only 10 %.
    """
    models: dict[str, dict[int | None, Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = re.fullmatch(r"(.+)_(\d+)", path.stem)
        name, percent = (match[1], int(match[2])) if match else (path.stem, None)
        models.setdefault(name, {})[percent] = path
    return models


def checkpoint_path(spec: MethodSpec, ratio: float) -> Path:
    """The file of a trained method for a CS ratio.

    Raises:
        UserError: if the zoo has no weights of this model for the ratio.
    """
    if spec.name.endswith(CHECKPOINT_SUFFIXES):
        return Path(spec.name)
    files = zoo()[spec.name]
    for percent, path in files.items():
        if percent is not None and abs(percent / 100 - ratio) < 1e-6:
            return path
    if None not in files:
        available = ", ".join(str(percent) for percent in sorted(filter(None, files)))
        raise UserError(f"method '{spec.name}' has weights for {available} %; there are none for ratio {ratio:g}")
    return files[None]


def build_method(spec: MethodSpec | str, ratio: float) -> Reconstructor:
    """The reconstructor of a method.

    Args:
        spec: see `parse_method`.
        ratio: CS ratio; some trained methods have weights for each.

    Raises:
        UserError: for an unknown name or setting, a value of the wrong type, or an unreadable checkpoint.
    """
    if isinstance(spec, str):
        spec = parse_method(spec)
    if not spec.training_free:
        from cs_models.zoo.checkpoints import load_checkpoint

        return load_checkpoint(checkpoint_path(spec, ratio))
    module, _, attribute = METHODS[spec.name].target.partition(":")
    return construct(getattr(importlib.import_module(module), attribute), spec)


def construct(cls: type[Reconstructor], spec: MethodSpec) -> Reconstructor:
    """An instance with the settings converted to the types that the constructor declares.

    Raises:
        UserError: for an unknown setting or a value of another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    known = inspect.signature(cls).parameters
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "settings")
    values: dict[str, Any] = {}
    _check_settings(spec.name, spec.settings, known)
    hints = get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    for key, text in spec.settings:
        if _takes_functions(hints.get(key)):
            raise UserError(f"method '{spec.name}': {key} is a function, which Python sets and no command line")
        try:
            values[key] = parser.parse_args([f"--settings.{key}={text}"]).settings[key]
        except (ArgumentError, RecursionError, TypeError, ValueError):
            expected = known[key].annotation
            raise UserError(f"method '{spec.name}': {key}={text} is not of type {expected}") from None
    return cls(**values)


def _takes_functions(kind: Any) -> bool:
    """Whether a type is that of functions, or a union with it."""
    return get_origin(kind) is Callable or any(map(_takes_functions, get_args(kind) if kind is not None else ()))


def list_methods() -> Sequence[tuple[str, str]]:
    """Name and one line of every method, the trained ones last."""
    solvers = [(method.name, method.summary) for method in METHODS.values()]
    networks = []
    for name, files in zoo().items():
        percents = sorted(percent for percent in files if percent is not None)
        trained_for = "any ratio" if None in files else f"{', '.join(map(str, percents))} %"
        networks.append((name, f"trained network, {trained_for}"))
    return solvers + networks
