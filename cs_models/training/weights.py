"""Checkpoints to share: safetensors weights with the full configuration in the header, and filling networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from cs_models.errors import UserError, first_line
from cs_models.files import replacing
from cs_models.training.reading import read_checkpoint, tensors_sha256

if TYPE_CHECKING:
    from cs_models.training.module import ReconstructionModule


def save_checkpoint(module: ReconstructionModule, path: str | Path) -> Path:
    """Write weights (the moving average where there is one), carried matrices and configuration.

    Raises:
        UserError: if the file cannot be written.
    """
    tensors = whole_tensors(module)
    try:
        return write_tensors(tensors, module, path)
    except (OSError, ValueError) as error:  # a path that is empty or has a null byte is a ValueError
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot write the checkpoint '{path}': {reason}; name a .safetensors file") from error


def whole_tensors(module: ReconstructionModule) -> dict[str, torch.Tensor]:
    """What a checkpoint holds. Where weights are split over processes, all of these must call."""
    tensors = {f"network.{key}": _whole(value) for key, value in module.evaluated_network.state_dict().items()}
    return tensors | {f"carried.{key}": value for key, value in module.carried.state_dict().items()}


def write_tensors(tensors: Mapping[str, torch.Tensor], module: ReconstructionModule, path: str | Path) -> Path:
    """Write the tensors of a module and its configuration, with the sha256 of both."""
    path = Path(path)
    configuration = json.dumps(module.header())
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        # Not by safetensors' save_file, whose files only their owner may read.
        metadata = {"cs_models": configuration, "sha256": tensors_sha256(configuration, on_cpu)}
        partial.write_bytes(save(on_cpu, metadata=metadata))
    return path


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is split over processes, gathered in each; any other as it is. All processes must ask."""
    # The class of split tensors takes a second to import, which loading a checkpoint need not pay.
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def load_weights(network: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fill a network with the weights of a checkpoint of the same architecture.

    What a network names in `of_one_matrix` stays its own: the checkpoint may be of another ratio or matrix. So do rows
    that it trains along, where those of the checkpoint are fixed.

    Returns:
        The checkpoint's provenance.

    Raises:
        UserError: if the file is missing, damaged, or of another architecture.
    """
    header, tensors = read_checkpoint(path)
    holder = nn.ModuleDict({"network": network})
    weights = {key: value for key, value in tensors.items() if key.startswith("network.")}
    weights |= {f"network.{name}": getattr(network, name) for name in getattr(network, "of_one_matrix", ())}
    if not any(key.startswith("network.sampling.") for key in weights):
        own = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        weights |= {name: tensor for name, tensor in own.items() if name.startswith("network.sampling.")}
    try:
        fill(holder, weights, ("network.",))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return header["provenance"]


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> None:
    """Load tensors whose names start with one of the prefixes into a module that has exactly these.

    Raises:
        UserError: if a name or a shape does not fit.
    """
    check_fit(module, tensors, prefixes)
    module.load_state_dict(tensors, strict=False)


def check_fit(module: nn.Module, tensors: Mapping[str, torch.Tensor], prefixes: tuple[str, ...]) -> None:
    """Compare the tensors of a module whose names start with one of the prefixes with those that are to fill it.

    Raises:
        UserError: if a name or a shape does not fit.
    """
    own = {key: value for key, value in module.state_dict().items() if key.startswith(prefixes)}
    check_weights(own, tensors, "its weights do not fit")


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
