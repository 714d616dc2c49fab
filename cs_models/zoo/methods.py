"""Every method that the benchmark knows by name, and how a word of the command line becomes a reconstructor."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cs_models.errors import UserError, nearest
from cs_models.files import is_file, shipped
from cs_models.signatures import parameters
from cs_models.zoo.own_code import OwnCode
from cs_models.zoo.settings import check_settings, typed_settings
from cs_models.zoo.wandb_weights import WEIGHTS, download

if TYPE_CHECKING:
    from cs_models.reconstruction import Reconstructor
    from cs_models.training.module import ReconstructionModule

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
OWN = "module:"
ZOO = shipped("checkpoints")


@dataclass(frozen=True)
class Method:
    """A training-free method.

    Attributes:
        name: as it is typed.
        target: ``module:Class``, imported when the method is used; the constructor's arguments are its settings.
        summary: one line.
        operator: what it is measured with by default, see `cs_models.operators.make_operator`.
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
        Method("irls", "cs_models.solvers.irls:IRLS", "iteratively reweighted least squares"),
        Method(
            "clomp",
            "cs_models.solvers.clomp:CLOMP",
            "coefficients learning with OMP's selection, TV and local variation, as its paper has it",
        ),
        Method(
            "clomp_warm",
            "cs_models.solvers.clomp:WarmCLOMP",
            "coefficients learning from a smooth image with local variation alone",
        ),
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
    """A method as the user wrote it: a name with settings, of a zoo model, in a file of theirs, or a checkpoint's path.

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
        """Whether it is in `METHODS`."""
        return self.name in METHODS

    @property
    def own(self) -> bool:
        """Whether it is in Python code of the user's; what is neither this nor training-free is a checkpoint."""
        return self.name.startswith(OWN)

    @cached_property
    def code(self) -> OwnCode:
        """The user's code of an `own` method.

        Raises:
            UserError: if there is no such file.
        """
        return OwnCode.find(split_settings(self.name)[1])

    @property
    def own_name(self) -> str:
        """The name in the user's code of an `own` method."""
        return split_settings(self.name)[2]

    def errors_in_one_line(self) -> AbstractContextManager[None]:
        """Tell errors of the user's own code by file and line; no others."""
        return self.code.errors_in_one_line() if self.own else nullcontext()


def parse_method(text: str) -> MethodSpec:
    """Read ``NAME``, ``NAME:key=value:key=value``, ``module:FILE.py:NAME:key=value`` or the path of a checkpoint.

    Of ``wandb:ENTITY/PROJECT/NAME:TAG`` the checkpoint is fetched, unless it was before.

    Raises:
        UserError: for an unknown name, a missing file, an unknown setting, or settings that are not ``key=value``.
    """
    if text.startswith(OWN):
        return _parse_own(text)
    if text.startswith(WEIGHTS):
        return MethodSpec(text, str(download(text)))
    if text.endswith(CHECKPOINT_SUFFIXES):
        if not is_file(text):
            raise UserError(f"checkpoint not found: {text}")
        return MethodSpec(text, text)
    name, *parts = split_settings(text)
    if name not in METHODS and name not in zoo():
        raise UserError(f"unknown method '{name}'{nearest(name, [*METHODS, *zoo(), 'zoo'])}")
    if parts and name not in METHODS:
        raise UserError(f"method '{name}' is a trained network and takes no settings; got '{text}'")
    settings = _parse_settings(text, name, parts)
    known = parameters(METHODS[name].target) if settings else None
    if known is not None:
        check_settings(f"method '{name}'", settings, known)
    return MethodSpec(text, name, settings)


def _parse_own(text: str) -> MethodSpec:
    _, *parts = split_settings(text)
    if len(parts) < 2 or not all(parts[:2]):
        raise UserError(f"cannot read '{text}'; a method of your own is written module:my_file.py:NAME")
    name = f"{OWN}{parts[0]}:{parts[1]}"
    spec = MethodSpec(text, name, _parse_settings(text, name, parts[2:]))
    spec.code  # noqa: B018 (a missing file is told before anything is computed)
    return spec


def _parse_settings(text: str, name: str, parts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    for part in parts:
        if "=" not in part:
            raise UserError(f"cannot read '{part}' in '{text}'; settings are written {name}:key=value:key=value")
    return tuple((key, value) for key, _, value in (part.partition("=") for part in parts))


def split_settings(text: str) -> list[str]:
    """The parts of ``NAME:key=value:key=value``; the colon of a Windows path, as in ``C:\\models``, separates none."""
    return re.split(r"(?<=^module):|:(?![\\/])", text)


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


def load(name: str, ratio: float | None = None, download: bool = False) -> ReconstructionModule:
    """A trained network by its name in the zoo, from a file or from the Hub, in evaluation mode on the CPU.

    Args:
        name: as ``eval.py --list`` shows it, the path of a `.safetensors` or `.ckpt` file, or
            ``module:FILE.py:CLASS:checkpoint=FILE`` for a network of one's own class, or ``user/name`` for a
            repository of the Hugging Face Hub.
        ratio: CS ratio, for a name with weights for each ratio.
        download: whether ``user/name`` may be fetched; else it must be in the Hub's local cache.

    Raises:
        UserError: for an unknown name, a missing or unreadable file, or a ratio without weights.
    """
    from cs_models.training.module import ReconstructionModule
    from cs_models.zoo.checkpoints import load_checkpoint

    if "/" in name:
        from cs_models.zoo.hub import from_hub, is_hub_name

        if is_hub_name(name) and not name.endswith(CHECKPOINT_SUFFIXES):
            return from_hub(name, download)
    spec = parse_method(name)
    if spec.training_free:
        raise UserError(
            f"'{name}' needs no training, so there is nothing to load; see cs_models.zoo.methods.build_method"
        )
    if spec.own:
        method = build_method(spec, ratio or 0.0)
        if not isinstance(method, ReconstructionModule):
            raise UserError(f"'{name}' is no trained network of this framework; build_method makes what it is")
        return method
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
    if spec.own:
        from cs_models.zoo.own_methods import build_own

        return build_own(spec.code, spec.own_name, spec.settings, ratio)
    if not spec.training_free:
        from cs_models.zoo.checkpoints import load_checkpoint

        return load_checkpoint(checkpoint_path(spec, ratio))
    module, _, attribute = METHODS[spec.name].target.partition(":")
    make = getattr(importlib.import_module(module), attribute)
    return make(**typed_settings(make, f"method '{spec.name}'", spec.settings))


def usual_operator(spec: MethodSpec) -> str:
    """What a method that carries no matrix is measured with where nobody says."""
    return METHODS[spec.name].operator if spec.training_free else Method.operator


def list_methods() -> Sequence[tuple[str, str]]:
    """Name and one line of every method, the trained ones last."""
    solvers = [(method.name, method.summary) for method in METHODS.values()]
    networks = []
    for name, files in zoo().items():
        percents = sorted(percent for percent in files if percent is not None)
        trained_for = "any ratio" if None in files else f"{', '.join(map(str, percents))} %"
        networks.append((name, f"trained network, {trained_for}"))
    return solvers + networks
