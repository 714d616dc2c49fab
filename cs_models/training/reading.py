"""Reading checkpoints of unknown origin: `.safetensors` files of ours, and `.ckpt` files of Lightning.

Nothing is unpickled that could run code. A header is checked against the tensors that the file really has, so that
whoever builds the network it describes allocates no more than that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cs_models.errors import UserError, first_line
from cs_models.files import is_file, shipped
from cs_models.host_memory import check_memory
from cs_models.settings import plain_values
from cs_models.training.torch_files import check_tensor, read_torch_file

_LONGEST_HEADER = 2**20
_PARTS = {"model": str, "network": dict, "training": dict, "carried": dict, "provenance": dict}


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
        if is_file(candidate):
            return candidate
    raise UserError(f"checkpoint not found: {path}; give a .safetensors or .ckpt file, or the name of a shipped one")


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a `.safetensors` or `.ckpt` file, without building anything.

    Returns:
        The header, plain values with tuples for lists, whose "carried" names the tensors that the file has; and the
        tensors.

    Raises:
        UserError: if the file is missing, damaged, or not one of ours.
    """
    path = find_checkpoint(path)
    readers = {".ckpt": _read_lightning, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise UserError(
            f"{path} has the suffix '{path.suffix}'; expected .safetensors or .ckpt (released weights: "
            "python -m cs_models.import_official)"
        )
    header, tensors = readers[path.suffix](path)
    try:
        header = plain_values(header)
        _check_header(header, tensors)
    except UserError as error:
        raise UserError(f"{path}: its configuration does not describe a model: {error}") from None
    return header, tensors


def tensors_sha256(configuration: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal sha256 of a checkpoint: the text of its configuration, and names, types, shapes and values."""
    digest = hashlib.sha256(configuration.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_header(header: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    if not isinstance(header, dict):
        raise UserError(f"it is of type {type(header).__name__}; expected names and values")
    for part, kind in _PARTS.items():
        if not isinstance(header.get(part), kind):
            raise UserError(f"its part '{part}' is missing or not of type {kind.__name__}")
    shapes = {
        name.removeprefix("carried."): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith("carried.")
    }
    if header["carried"] != shapes:
        raise UserError(f"it carries the matrices {header['carried']}, the file has {shapes}")
    for name, shape in shapes.items():
        rows = re.fullmatch(r"phi_([1-9]\d*)", name)
        if len(shape) != 2 or 0 in shape or (name != "mask" and not (rows and int(rows[1]) == shape[0])):
            raise UserError(f"its matrix '{name}' has the shape {shape}")


def _read_safetensors(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    try:
        check_memory(path.stat().st_size, f"checkpoint '{path}'")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "cs_models" not in metadata:
                raise UserError(f"{path} is no checkpoint of this framework: its header has no 'cs_models' entry")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    configuration = metadata["cs_models"]
    # Files of earlier versions have none.
    if metadata.get("sha256", "") not in ("", tensors_sha256(configuration, tensors)):
        raise UserError(f"{path} is damaged: the sha256 in its header is that of other values; copy it again")
    try:
        if len(configuration) > _LONGEST_HEADER:
            raise ValueError(f"it has {len(configuration)} characters")
        return json.loads(configuration), tensors
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: the 'cs_models' entry of its header is no JSON of ours ({first_line(error)})"
        ) from error


def _read_lightning(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    content = read_torch_file(path)
    if not isinstance(content, dict) or "cs_models" not in content:
        raise UserError(f"{path} is no checkpoint of this framework: it has no 'cs_models' entry")
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} has no weights: its 'state_dict' is of type {type(state).__name__}")
    averaged = {key.removeprefix("ema.module."): value for key, value in state.items() if key.startswith("ema.module.")}
    own = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    tensors = {f"network.{key}": value for key, value in (averaged or own).items()}
    tensors |= {key: value for key, value in state.items() if key.startswith("carried.")}
    try:
        for name, value in tensors.items():
            check_tensor(name, value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return content["cs_models"], tensors
