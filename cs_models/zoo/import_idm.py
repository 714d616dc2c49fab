"""Weights in the layout of IDM's authors, turned into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.networks.diffusion.idm import IDMConfig, IDMModule, IDMTraining
from cs_models.operators import Sampling
from cs_models.training.weights import check_weights

# From the authors' names to ours, one substitution after the other. Their state dicts hold every wired layer twice,
# under its name in the U-Net and as the body of its wiring; the second tells its place in the sequence.
OFFICIAL_NAMES = (
    (r"^alpha$", "alphas"),
    (r"^body\.(\d+)\.v$", r"wiring.sequence.v.\1"),
    (r"\brev_module_lists\.(\d+)\.(\d+)\.v$", r"groups.\1.v.\2"),
    (r"\brev_module_lists\.(\d+)\.(\d+)\.body\.", r"groups.\1.layers.\2."),
    (r"\brev_module_list\.(\d+)\.v$", r"wired.sequence.v.\1"),
    (r"\brev_module_list\.(\d+)\.body\.", r"wired.sequence.layers.\1."),
    (r"\binput_help_scale_factor$", "input_scale"),
    (r"\bmerge_scale_factor(s?)$", r"output_scale\1"),
    (r"^(input|output)_scale$", r"wiring.\1_scale"),
    (r"^(unet\.up_blocks\.\d+)\.(input|output)_scale$", r"\1.wired.\2_scale"),
    (r"^(unet\.down_blocks\.1)\.resnets\.0\.", r"\1.entry."),
    (r"^(unet\.up_blocks\.\d+)\.resnets\.0\.", r"\1.entry.resnet."),
    (r"\b(up|down)samplers\.0\.", r"\1sampler."),
    (r"\b(layers\.\d+)\.(norm|proj_in|proj_out|transformer_blocks)\.", r"\1.transformer.\2."),
    (r"^(unet\.up_blocks\.\d+\.wired\.sequence\.layers\.\d+)\.(norm\d|conv\w+)\.", r"\1.resnet.\2."),
    (r"\bf2i\.(\d+)\.1\.", r"to_image.\1."),
    (r"\bi2f\.(\d+)\.0\.", r"to_features.\1."),
)


def import_idm_state(state: Mapping[str, Tensor]) -> IDMModule:
    """An IDM with weights in the layout of the authors' code: pruned, with injectors, for luminance.

    No released file was at hand; the layout is that of a state dict of the published code. What shapes do not
    tell is taken from Stable Diffusion v1.5: 8 attention heads, 32 groups in each normalisation. The sampling
    matrix is not part of such files.

    Args:
        state: tensors by their official names.

    Raises:
        UserError: if names are missing or unknown, or shapes do not fit.
    """
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for official, value in state.items():
        name = official
        for pattern, replacement in OFFICIAL_NAMES:
            name = re.sub(pattern, replacement, name)
        sequence, _, number = name.rpartition(".v.")
        if sequence:
            parts.setdefault(f"{sequence}.v", {})[int(number)] = value
        elif not re.search(r"\.(resnets|attentions|injectors)\.", name):
            found[name] = value.reshape(1) if name.endswith("_scale") else value
    found |= {name: torch.cat([value for _, value in sorted(numbered.items())]) for name, numbered in parts.items()}

    module = IDMModule(_official_config(found), IDMTraining(sampling=Sampling(kind="structured", block_size=32)))
    check_weights(module.network.state_dict(), found, "the weights do not fit IDM")
    module.network.load_state_dict(found)
    return module


def _official_config(state: Mapping[str, Tensor]) -> IDMConfig:
    """The architecture that weights under our names belong to."""
    try:
        shallow = len(state["unet.conv_in.weight"])
        middle, decoder_input = (
            state[f"unet.{block}.conv1.weight"].shape[i]
            for block, i in (("down_blocks.1.entry", 0), ("up_blocks.0.entry.resnet", 1))
        )
        kernel = state["unet.up_blocks.0.wired.sequence.layers.0.to_image.0.weight"].shape[-1]
        steps = len(state["alphas"])
    except KeyError as error:
        raise UserError(f"these are no IDM weights in the authors' layout: nothing in them gives {error}") from error
    deep = decoder_input - middle
    widths = (shallow, middle, deep, deep)
    return IDMConfig(steps, unet={"block_out_channels": widths}, injector_kernel=3 if kernel == 3 else 1)
