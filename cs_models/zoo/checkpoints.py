"""Checkpoints to share: safetensors weights with the full configuration in the header. Nothing is unpickled."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cs_models.errors import UserError, first_line, nearest
from cs_models.operators import Sampling
from cs_models.operators.carried import CarriedSampling
from cs_models.reconstruction import ReconstructionModule, Training
from cs_models.training.sharding import whole

# Adding a model is one line here, its file, and a YAML.
MODELS = {
    "ista_net": "cs_models.networks.unfolding.ista_net:ISTANetModule",
    "ista_net_pp": "cs_models.networks.unfolding.ista_net_pp:ISTANetPPModule",
    "coast": "cs_models.networks.unfolding.coast:COASTModule",
    "idm": "cs_models.networks.diffusion.idm:IDMModule",
    "csnet_plus": "cs_models.networks.learned_sampling.csnet_plus:CSNetPlusModule",
    "rk_ccsnet": "cs_models.networks.learned_sampling.rk_ccsnet:RKCCSNetModule",
}


def model_class(name: str) -> type[ReconstructionModule]:
    """The LightningModule of a model's name.

    Raises:
        UserError: for an unknown name.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}'{nearest(name, MODELS)}")
    module, _, attribute = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def save_checkpoint(module: ReconstructionModule, path: str | Path) -> Path:
    """Write weights (the moving average where there is one), carried matrices and configuration."""
    return write_tensors(whole_tensors(module), module, path)


def whole_tensors(module: ReconstructionModule) -> dict[str, torch.Tensor]:
    """What a checkpoint holds. Where weights are split over processes, all of these must call."""
    tensors = {f"network.{key}": whole(value) for key, value in module.evaluated_network.state_dict().items()}
    return tensors | {f"carried.{key}": value for key, value in module.carried.state_dict().items()}


def write_tensors(tensors: Mapping[str, torch.Tensor], module: ReconstructionModule, path: str | Path) -> Path:
    """Write the tensors of a module and its configuration.

    The file is written beside its place and renamed into it, so that no reader sees half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(on_cpu, partial, metadata={"cs_models": json.dumps(module.header())})
    partial.replace(path)
    return path


def load_checkpoint(path: str | Path) -> ReconstructionModule:
    """The module of a `.safetensors` file, or of a Lightning `.ckpt` file, in evaluation mode on the CPU.

    Raises:
        UserError: if the file is missing, damaged, not one of ours, or does not fit its own configuration.
    """
    header, tensors = _read(Path(path))
    try:
        module = _build(header)
        _fill(module, tensors, ("network.", "carried."))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: its configuration does not describe a model of this version: {error}") from error
    return module.eval()


def load_weights(network: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fill a network with the weights of a checkpoint of the same architecture.

    What a network names in `of_one_matrix` stays its own: the checkpoint may be of another ratio or matrix.

    Returns:
        The checkpoint's provenance.

    Raises:
        UserError: if the file is missing, damaged, or of another architecture.
    """
    header, tensors = _read(Path(path))
    holder = nn.ModuleDict({"network": network})
    weights = {key: value for key, value in tensors.items() if key.startswith("network.")}
    weights |= {f"network.{name}": getattr(network, name) for name in getattr(network, "of_one_matrix", ())}
    try:
        _fill(holder, weights, ("network.",))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return header["provenance"]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a checkpoint, without building anything."""
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path}")
    if path.suffix == ".ckpt":
        return _read_lightning(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise UserError(
        f"{path} has the suffix '{path.suffix}'; expected .safetensors or .ckpt (released weights: "
        "python -m cs_models.import_official)"
    )


def _build(header: dict[str, Any]) -> ReconstructionModule:
    cls = model_class(header["model"])
    network, training = _with_tuples(header["network"]), _with_tuples(header["training"])
    # The moving average is what was exported, so it is not averaged again.
    training |= {"sampling": Sampling(**training["sampling"]), "ema_decay": None, "start_from": None, "compile": False}
    module = cls(cls.config_class(**network), Training(**training))  # type: ignore[call-arg]
    module.carried = CarriedSampling()
    module.carried.make_room(header["carried"])
    module.provenance = header["provenance"]
    return module


def _with_tuples(value: Any) -> Any:
    """What JSON turned into lists, as the tuples that configurations hold."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> None:
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


def main(arguments: list[str] | None = None) -> int:
    """``python -m cs_models.zoo.checkpoints last.ckpt --out model.safetensors``."""
    parser = argparse.ArgumentParser(
        prog="python -m cs_models.zoo.checkpoints", description="Turn a Lightning checkpoint into one to share."
    )
    parser.add_argument("source", help="a .ckpt file of train.py")
    parser.add_argument("--out", required=True, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        print(save_checkpoint(load_checkpoint(options.source), options.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
