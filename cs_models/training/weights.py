"""Checkpoints to share: safetensors weights with the full configuration in the header. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from cs_models.errors import UserError, first_line
from cs_models.files import replacing, shipped

if TYPE_CHECKING:
    from cs_models.training.module import ReconstructionModule


def save_checkpoint(module: ReconstructionModule, path: str | Path) -> Path:
    """Write weights (the moving average where there is one), carried matrices and configuration."""
    return write_tensors(whole_tensors(module), module, path)


def whole_tensors(module: ReconstructionModule) -> dict[str, torch.Tensor]:
    """What a checkpoint holds. Where weights are split over processes, all of these must call."""
    tensors = {f"network.{key}": _whole(value) for key, value in module.evaluated_network.state_dict().items()}
    return tensors | {f"carried.{key}": value for key, value in module.carried.state_dict().items()}


def write_tensors(tensors: Mapping[str, torch.Tensor], module: ReconstructionModule, path: str | Path) -> Path:
    """Write the tensors of a module and its configuration."""
    path = Path(path)
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as partial:
        # Not by safetensors' save_file, whose files only their owner may read.
        partial.write_bytes(save(on_cpu, metadata={"cs_models": json.dumps(module.header())}))
    return path


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is split over processes, gathered in each; any other as it is. All processes must ask."""
    # The class of split tensors takes a second to import, which loading a checkpoint need not pay.
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def load_weights(network: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fill a network with the weights of a checkpoint of the same architecture.

    What a network names in `of_one_matrix` stays its own: the checkpoint may be of another ratio or matrix.

    Returns:
        The checkpoint's provenance.

    Raises:
        UserError: if the file is missing, damaged, or of another architecture.
    """
    header, tensors = read_checkpoint(path)
    holder = nn.ModuleDict({"network": network})
    weights = {key: value for key, value in tensors.items() if key.startswith("network.")}
    weights |= {f"network.{name}": getattr(network, name) for name in getattr(network, "of_one_matrix", ())}
    try:
        fill(holder, weights, ("network.",))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return header["provenance"]


def find_checkpoint(path: str | Path) -> Path:
    """The file of a checkpoint: the user's, or one that is shipped.

    Args:
        path: a file, or a shipped one by its path (``checkpoints/r_coast.safetensors``) or name (``r_coast``).

    Raises:
        UserError: if there is no such file.
    """
    path = Path(path)
    folder = shipped("checkpoints")
    name = path.as_posix().removeprefix("checkpoints/")
    for candidate in (path, folder / name, folder / f"{name}.safetensors"):
        if candidate.is_file():
            return candidate
    raise UserError(f"checkpoint not found: {path}; give a .safetensors or .ckpt file, or the name of a shipped one")


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a `.safetensors` or `.ckpt` file, without building anything.

    Raises:
        UserError: if the file is missing, damaged, or not one of ours.
    """
    path = find_checkpoint(path)
    if path.suffix == ".ckpt":
        return _read_lightning(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise UserError(
        f"{path} has the suffix '{path.suffix}'; expected .safetensors or .ckpt (released weights: "
        "python -m cs_models.import_official)"
    )


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> None:
    """Load tensors whose names start with one of the prefixes into a module that has exactly these.

    Raises:
        UserError: if a name or a shape does not fit.
    """
    own = {key: value for key, value in module.state_dict().items() if key.startswith(prefixes)}
    check_weights(own, tensors, "its weights do not fit")
    module.load_state_dict(tensors, strict=False)


def check_weights(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], complaint: str, unknown: Sequence[str] = ()
) -> None:
    """Compare the tensors that a network has with those that are to fill it.

    Args:
        own: the network's.
        given: what is to fill it.
        complaint: first words of the error.
        unknown: further names that were given and have no place.

    Raises:
        UserError: one line on the names that are missing, unexpected or of another shape, each kind cut after three.
    """
    kinds = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": [*unknown, *sorted(given.keys() - own.keys())],
        "misshapen": sorted(key for key in own.keys() & given.keys() if own[key].shape != given[key].shape),
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    if found:
        raise UserError(f"{complaint}: {'; '.join(found)}")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if "cs_models" not in metadata:
        raise UserError(f"{path} is no checkpoint of this framework: its header has no 'cs_models' entry")
    try:
        return json.loads(metadata["cs_models"]), tensors
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: the 'cs_models' entry of its header is no JSON ({error})") from error


def _read_lightning(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"cannot read {path} as a checkpoint without code: {first_line(error)}") from error
    if "cs_models" not in content:
        raise UserError(f"{path} is no checkpoint of this framework: it has no 'cs_models' entry")
    state = content["state_dict"]
    averaged = {key.removeprefix("ema.module."): value for key, value in state.items() if key.startswith("ema.module.")}
    own = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    tensors = {f"network.{key}": value for key, value in (averaged or own).items()}
    tensors |= {key: value for key, value in state.items() if key.startswith("carried.")}
    return content["cs_models"], tensors
