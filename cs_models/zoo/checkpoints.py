"""From the file of a checkpoint to the method that it holds."""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from cs_models.errors import UserError, nearest
from cs_models.operators import Sampling
from cs_models.operators.carried import CarriedSampling
from cs_models.training.module import ReconstructionModule
from cs_models.training.weights import fill, read_checkpoint, save_checkpoint

# Adding a model is one line here, its file, and a YAML.
MODELS = {
    "ista_net": "cs_models.networks.unfolding.ista_net:ISTANetModule",
    "ista_net_pp": "cs_models.networks.unfolding.ista_net_pp:ISTANetPPModule",
    "coast": "cs_models.networks.unfolding.coast:COASTModule",
    "scnet": "cs_models.networks.unfolding.scnet:SCNetModule",
    "sodas_net": "cs_models.networks.unfolding.sodas_net:SODASNetModule",
    "idm": "cs_models.networks.diffusion.idm:IDMModule",
    "csnet_plus": "cs_models.networks.learned_sampling.csnet_plus:CSNetPlusModule",
    "rk_ccsnet": "cs_models.networks.learned_sampling.rk_ccsnet:RKCCSNetModule",
    "opine_net_plus": "cs_models.networks.learned_sampling.opine_net:OPINENetModule",
}

# Older headers have these options of unfolding networks for every model.
UNFOLDING_OPTIONS = {"random_iterations": False, "loss_on": "final"}


def model_class(name: str) -> type[ReconstructionModule]:
    """The class of a model's name.

    Raises:
        UserError: for an unknown name.
    """
    if name not in MODELS:
        raise UserError(
            f"unknown model '{name}'{nearest(name, MODELS)}; a class of your own is named with its file, as in "
            "--methods module:my_file.py:MyModule:checkpoint=FILE"
        )
    module, _, attribute = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_checkpoint(path: str | Path, cls: type[ReconstructionModule] | None = None) -> ReconstructionModule:
    """The module of a `.safetensors` file, or of a Lightning `.ckpt` file, in evaluation mode on the CPU.

    Args:
        path: the file.
        cls: what was trained, where it is none of `MODELS`: a file says no more than its name, and no code is imported
            because a file names it.

    Raises:
        UserError: if the file is missing, damaged, not one of ours, of another class, or does not fit its own
            configuration.
    """
    header, tensors = read_checkpoint(path)
    try:
        module = _build(header, cls)
        fill(module, tensors, ("network.", "carried."))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: its configuration does not describe a model of this version: {error}") from error
    return module.eval()


def _build(header: dict[str, Any], cls: type[ReconstructionModule] | None) -> ReconstructionModule:
    if cls is None:
        cls = model_class(header["model"])
    elif header["model"] != cls.name:
        raise UserError(f"it holds the network '{header['model']}', and the class {cls.__name__} is '{cls.name}'")
    network, training = _with_tuples(header["network"]), _with_tuples(header["training"])
    # The moving average is what was exported, so it is not averaged again.
    training |= {"sampling": Sampling(**training["sampling"]), "ema_decay": None, "start_from": None, "compile": False}
    own = {field.name for field in fields(cls.training_class)}
    for option, default in UNFOLDING_OPTIONS.items():
        if option not in own and training.get(option) == default:
            del training[option]
    module = cls(cls.config_class(**network), cls.training_class(**training))  # type: ignore[call-arg]
    module.carried = CarriedSampling()
    module.carried.make_room(header["carried"])
    module.provenance = header["provenance"]
    return module


def _with_tuples(value: Any) -> Any:
    """What JSON turned into lists, as the tuples that configurations hold."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


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
