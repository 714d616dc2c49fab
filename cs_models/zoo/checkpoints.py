"""From the file of a checkpoint to the method that it holds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from cs_models.errors import CommandParser, UserError, first_line, nearest, report
from cs_models.operators.carried import CarriedSampling
from cs_models.settings import typed
from cs_models.training.module import ReconstructionModule
from cs_models.training.reading import read_checkpoint
from cs_models.training.weights import check_fit, fill, save_checkpoint

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

# Settings of networks that name other files, which a network in a checkpoint never needs.
OUTSIDE = ("pretrained", "null_prompt")

# Numbers of a matrix that costs nothing, more than those of all pixels of 33x33 blocks.
SMALL_MATRIX = 2**22


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
    own = ("network.", "carried.")
    try:
        # First without memory for any number, so that no more is allocated than the file has.
        with torch.device("meta"):
            check_fit(_build(header, tensors, cls), tensors, own)
        module = _build(header, tensors, cls)
        fill(module, tensors, own)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a hostile configuration fails anywhere inside torch and diffusers
        raise UserError(
            f"{path}: its configuration does not describe a model of this version: {first_line(error)[:200]}"
        ) from error
    return module.eval()


def _build(
    header: dict[str, Any], tensors: Mapping[str, torch.Tensor], cls: type[ReconstructionModule] | None
) -> ReconstructionModule:
    if cls is None:
        cls = model_class(header["model"])
    elif header["model"] != cls.name:
        raise UserError(f"it holds the network '{header['model']}', and the class {cls.__name__} is '{cls.name}'")
    training = dict(header["training"])
    # The moving average is what was exported, so it is not averaged again; and this machine may be another one.
    training |= {
        "ema_decay": None,
        "start_from": None,
        "compile": False,
        "compile_mode": "default",
        "cuda_graphs": False,
    }
    own = {field.name for field in fields(cls.training_class)}
    for option, default in UNFOLDING_OPTIONS.items():
        if option not in own and training.get(option) == default:
            del training[option]
    config: Any = typed(cls.config_class, header["network"], "network")
    for source in OUTSIDE:
        if getattr(config, source, None) is not None:
            raise UserError(f"network.{source} names a file outside of the checkpoint; none is read")
    for count in ("layers", "blocks"):  # each has a tensor at least; building many takes minutes
        if getattr(config, count, 0) > len(tensors):
            raise UserError(f"its network has {getattr(config, count)} {count}, the file {len(tensors)} tensors")
    module = cls(config, typed(cls.training_class, training, "training"))  # type: ignore[call-arg]
    # Networks for one matrix draw one, which is replaced below, of a size that no weight may depend on.
    drawn = sum(matrix.numel() for matrix in module.carried.buffers())
    if drawn > max(sum(tensor.numel() for tensor in tensors.values()), SMALL_MATRIX):
        raise UserError(f"its sampling is a matrix of {drawn:,} numbers, which the file does not have")
    module.carried = CarriedSampling()
    module.carried.make_room(header["carried"])
    module.provenance = header["provenance"]
    return module


def main(arguments: list[str] | None = None) -> int:
    """``python -m cs_models.zoo.checkpoints last.ckpt --out model.safetensors``."""
    parser = CommandParser(
        prog="python -m cs_models.zoo.checkpoints", description="Turn a Lightning checkpoint into one to share."
    )
    parser.add_argument("source", help="a .ckpt file of train.py")
    parser.add_argument("--out", required=True, help="the .safetensors file to write")
    try:
        options = parser.parse_args(arguments)
        print(save_checkpoint(load_checkpoint(options.source), options.out))
    except UserError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
