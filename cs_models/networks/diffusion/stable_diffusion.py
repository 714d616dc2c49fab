"""Stable Diffusion's U-Net as diffusers builds it, and what IDM cuts from it and adds to it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from cs_models.errors import UserError, first_line, nearest
from cs_models.host_memory import check_memory
from cs_models.operators.matrices import shapes_only
from cs_models.settings import check_range

# Where Stable Diffusion v1.5 differs from diffusers' defaults.
STABLE_DIFFUSION_V1_5 = {"cross_attention_dim": 768, "sample_size": 64}
KEPT_LEVELS = 2
PROMPT_TOKENS = 77


def build_unet(changes: dict[str, Any]) -> UNet2DConditionModel:
    """Skeleton of a U-Net on the meta device: shapes without numbers, so that what is cut away costs nothing.

    Args:
        changes: to the configuration of Stable Diffusion v1.5, with diffusers' names.

    Raises:
        UserError: for names or values that diffusers does not take.
    """
    known = list(inspect.signature(UNet2DConditionModel.__init__).parameters)[1:]
    for name, value in changes.items():
        if name not in known:
            raise UserError(f"a U-Net has no setting '{name}'{nearest(name, known)}")
        _check_numbers(name, value)
    config = STABLE_DIFFUSION_V1_5 | {
        name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
    }
    try:
        with torch.device("meta"):
            return UNet2DConditionModel(**config)
    except Exception as error:  # diffusers checks few of its settings
        raise UserError(f"diffusers cannot build the U-Net: {first_line(error)}") from error


def _check_numbers(name: str, value: Any) -> None:
    """Refuse numbers of layers or channels that no U-Net has, which diffusers would build for hours."""
    values = value if isinstance(value, list | tuple) else (value,)
    check_range(f"the number of entries of {name}", len(values), 0, 16)
    for item in values:
        if isinstance(item, list | tuple):
            _check_numbers(name, item)
        elif isinstance(item, int | float):
            check_range(name, item, -1, 64 if "layers_per_block" in name else 2**20)


def load_unet(source: str) -> UNet2DConditionModel:
    """A U-Net with its weights, from a folder or from the Hugging Face hub.

    Args:
        source: a folder that diffusers wrote, of the U-Net or of a whole pipeline, or a hub id ``owner/name``.

    Raises:
        UserError: if nothing is there.
    """
    folder = Path(source).expanduser()
    hint = "give a diffusers folder that holds config.json and diffusion_pytorch_model.safetensors"
    is_pipeline = not (folder / "config.json").is_file()
    if not folder.is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise UserError(f"no U-Net found: there is no folder '{source}', and it is no hub id; {hint}")
    try:
        return UNet2DConditionModel.from_pretrained(
            str(folder) if folder.is_dir() else source,
            subfolder="unet" if is_pipeline else None,
            use_safetensors=True,
        )
    except Exception as error:  # diffusers, huggingface_hub and the network each have their own
        tried = f"folder '{source}'" if folder.is_dir() else f"hub id '{source}' (no such folder here)"
        raise UserError(f"no U-Net found: tried {tried}, {type(error).__name__}; {hint}") from error


def prune(unet: UNet2DConditionModel) -> None:
    """Cut a U-Net of diffusers down to what IDM keeps; what is left no longer runs by itself."""
    unet.time_proj = unet.time_embedding = unet.mid_block = None
    unet.down_blocks = unet.down_blocks[:KEPT_LEVELS]
    unet.up_blocks = unet.up_blocks[-KEPT_LEVELS:]
    unet.down_blocks[-1].downsamplers = None
    for block in (*unet.down_blocks, *unet.up_blocks):
        for resnet in block.resnets:
            resnet.time_emb_proj = None
        for transformer in getattr(block, "attentions", None) or []:
            for layer in transformer.transformer_blocks:
                layer.attn2 = layer.norm2 = None


def initialise(unet: UNet2DConditionModel) -> None:
    """Turn a skeleton on the meta device into a U-Net with PyTorch's random initial weights.

    Raises:
        UserError: for settings that bring layers without such an initialisation, or more than fits into memory.
    """
    if not shapes_only():  # weights in float32, their gradients, and the two means of Adam
        check_memory(16 * sum(weight.numel() for weight in unet.parameters()), "training this U-Net")
    unet.to_empty(device=torch.get_default_device())
    for name, module in unet.named_modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
            raise UserError(f"no random start is known for the U-Net's layer '{name}'; load it with `pretrained`")


def widen(unet: UNet2DConditionModel, image_channels: int) -> None:
    """Let a U-Net for one image channel take and give several, each as the one was, the inputs averaged."""
    old_in, old_out = unet.conv_in, unet.conv_out
    with torch.device(old_in.weight.device):
        unet.conv_in = nn.Conv2d(4 * image_channels, old_in.out_channels, old_in.kernel_size, padding=old_in.padding)
        unet.conv_out = nn.Conv2d(old_out.in_channels, 4 * image_channels, old_out.kernel_size, padding=old_out.padding)
    with torch.no_grad():
        unet.conv_in.weight.copy_(old_in.weight.repeat(1, image_channels, 1, 1) / image_channels)
        unet.conv_in.bias.copy_(old_in.bias)
        unet.conv_out.weight.copy_(old_out.weight.repeat(image_channels, 1, 1, 1))
        unet.conv_out.bias.copy_(old_out.bias.repeat(image_channels))
