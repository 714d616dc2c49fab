"""Stable Diffusion's U-Net, cut down and wired for IDM (Chen et al., TPAMI 2025, Sec. 3.3).

Of the U-Net of Stable Diffusion v1.5 the two shallow levels stay. Time embedding, middle block, deeper levels and
cross-attention go. Inside each block the layers that keep the number of channels become invertible sequences;
what changes channels or size stays outside and is checkpointed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cs_models.errors import UserError
from cs_models.networks.diffusion.stable_diffusion import PROMPT_TOKENS
from cs_models.networks.injector import Injector
from cs_models.networks.invertible import Chain, Context, InvertibleSequence, Wired
from cs_models.operators import MeasurementOperator

TRAINING_TIMESTEPS = 1000

Inject = Callable[[], list[nn.Module]]  # a new injector for some level, or none where there are no injectors


class Conditions(NamedTuple):
    """What the layers of a U-Net read besides features.

    Attributes:
        step: index t - 1 of the sampling step.
        operator: A on images of the U-Net's input size.
        aty: ``A^T y``.
        time: embedding of the step; None for a pruned U-Net.
        prompt: embedding of the null prompt; None for a pruned U-Net.
    """

    step: int
    operator: MeasurementOperator
    aty: Tensor
    time: Tensor | None
    prompt: Tensor | None


class AttentionByHead:
    """diffusers' attention of a transformer block, with the keys and values of each head brought together.

    On CPUs scaled_dot_product_attention takes 8 % less time for them than in the order in which diffusers leaves them.
    """

    def __call__(
        self, attention: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: None = None
    ) -> Tensor:
        """What diffusers asks of a processor; IDM masks nothing."""
        source = x if encoder_hidden_states is None else encoder_hidden_states
        features = attention.to_q(x), attention.to_k(source), attention.to_v(source)
        q, k, v = (rearrange(h, "b n (head c) -> b head n c", head=attention.heads) for h in features)
        if x.device.type == "cpu":
            k, v = k.contiguous(), v.contiguous()
        found = F.scaled_dot_product_attention(q, k, v)
        linear, dropout = attention.to_out
        return dropout(linear(rearrange(found, "b head n c -> b n (head c)")))


class Attention(nn.Module):
    """A transformer of diffusers, called with tensors and returning one."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        for module in transformer.modules():
            if isinstance(module, attention_processor.Attention):
                module.set_processor(AttentionByHead())
        self.transformer = transformer

    def forward(self, x: Tensor, prompt: Tensor | None) -> Tensor:
        return self.transformer(x, encoder_hidden_states=prompt, return_dict=False)[0]


class SkipResidual(nn.Module):
    """A residual block of the decoder: it reads a feature of the encoder beside its own input."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, x: Tensor, skip: Tensor, time: Tensor | None) -> Tensor:
        return self.resnet(torch.cat([x, skip], dim=1), time)


def _contexts(layers: Iterable[nn.Module], conditions: Conditions, skips: Sequence[Tensor] = ()) -> list[Context]:
    """Of each wired layer what it reads; the skips go to the decoder's residual blocks in order."""
    remaining = iter(skips)

    def context(layer: nn.Module) -> Context:
        match layer:
            case Injector():
                return conditions.step, conditions.operator, conditions.aty
            case Attention():
                return (conditions.prompt,)
            case SkipResidual():
                return next(remaining), conditions.time
            case _:
                return (conditions.time,)

    return [context(layer) for layer in layers]


def _outside(module: nn.Module, recompute: bool, *inputs: Tensor | None) -> Tensor:
    """A module outside the wiring, whose activations are kept or computed again."""
    return checkpoint(module, *inputs, use_reentrant=False) if recompute else module(*inputs)


def _attentions(block: Any) -> list[Attention | None]:
    """The transformers of a block, one beside each residual block; None where the level has none."""
    transformers = getattr(block, "attentions", None)
    return [None] * len(block.resnets) if transformers is None else [Attention(module) for module in transformers]


class DownBlock(nn.Module):
    """A level of the encoder: one pair runs through a wired group for each residual block.

    The pair is only read where it is merged into a feature ``x + w h``; the next group continues from the pair.

    Attributes:
        entry: residual block that changes the number of channels, outside the wiring; None where none does.
        groups: per residual block: [the block unless it is the entry], injector, attention, injector.
        input_scale: of the pair's start (x, w_in x).
        output_scales: w of each merge; None, as the input's, without the wiring.
        downsampler: None at the deepest level.
        invertible: off, entry and downsampler keep their activations.
    """

    def __init__(self, block: Any, inject: Inject, wired: bool = True) -> None:
        super().__init__()
        first = block.resnets[0]
        self.entry = first if first.in_channels != first.out_channels else None
        self.groups = nn.ModuleList()
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            layers: list[nn.Module] = [] if resnet is self.entry else [resnet]
            layers += inject()
            if attention is not None:
                layers += [attention, *inject()]
            self.groups.append(InvertibleSequence(layers) if wired else Chain(layers))
        self.input_scale = nn.Parameter(torch.ones(1)) if wired else None
        self.output_scales = nn.Parameter(torch.zeros(len(self.groups))) if wired else None
        self.downsampler = block.downsamplers[0] if block.downsamplers else None
        self.invertible = True

    def forward(self, x: Tensor, conditions: Conditions) -> list[Tensor]:
        """The features that the decoder reads; the last one is also the output."""
        if self.entry is not None:
            x = _outside(self.entry, self.invertible, x, conditions.time)
        features = self._group_features(x, conditions)
        if self.downsampler is not None:
            features.append(_outside(self.downsampler, self.invertible, features[-1]))
        return features

    def _group_features(self, x: Tensor, conditions: Conditions) -> list[Tensor]:
        """What each group gives, with the wiring merged from its pair."""
        contexts = [_contexts(group.layers, conditions) for group in self.groups]  # type: ignore[arg-type]
        features = []
        if self.input_scale is None or self.output_scales is None:
            for group, read in zip(self.groups, contexts, strict=True):
                x = group(x, read)
                features.append(x)
            return features
        h = self.input_scale * x
        for group, read, scale in zip(self.groups, contexts, self.output_scales, strict=True):
            x, h = group(x, h, read)
            features.append(x + scale * h)
        return features


class MiddleBlock(nn.Module):
    """The middle block of a U-Net that was not pruned."""

    def __init__(self, block: Any, inject: Inject, wired: bool = True) -> None:
        super().__init__()
        first, *others = block.resnets
        layers = [first, *inject()]
        for resnet, transformer in zip(others, block.attentions, strict=True):
            layers += [Attention(transformer), *inject(), resnet, *inject()]
        self.wired = Wired(layers) if wired else Chain(layers)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        return self.wired(x, _contexts(self.wired.layers, conditions))


class UpBlock(nn.Module):
    """A level of the decoder: after its first residual block one wired group.

    Attributes:
        entry: the first residual block, outside the wiring.
        wired: (injector, attention, injector) for each residual block, the others between them.
        upsampler: None at the shallowest level.
        invertible: off, entry and upsampler keep their activations.
    """

    def __init__(self, block: Any, inject: Inject, wired: bool = True) -> None:
        super().__init__()
        self.entry = SkipResidual(block.resnets[0])
        layers: list[nn.Module] = []
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            layers += inject() if resnet is block.resnets[0] else [SkipResidual(resnet), *inject()]
            if attention is not None:
                layers += [attention, *inject()]
        self.wired = Wired(layers) if wired else Chain(layers)
        self.upsampler = block.upsamplers[0] if block.upsamplers else None
        self.skips = len(block.resnets)
        self.invertible = True

    def forward(self, x: Tensor, skips: Sequence[Tensor], conditions: Conditions) -> Tensor:
        """Features from below and one skip feature for each residual block, in their order."""
        x = _outside(self.entry, self.invertible, x, skips[0], conditions.time)
        x = self.wired(x, _contexts(self.wired.layers, conditions, skips[1:]))
        return x if self.upsampler is None else _outside(self.upsampler, self.invertible, x)


class InvertibleUNet(nn.Module):
    """The wired U-Net.

    Attributes:
        multiple: what height and width of its input must be multiples of.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        steps: int,
        image_channels: int = 1,
        injector_kernel: int | None = 1,
        wired: bool = True,
    ) -> None:
        """
        Args:
            unet: whose parts are taken over, pruned or not.
            steps: T, for the injectors.
            image_channels: 1 or 3.
            injector_kernel: 1 or 3; None for no injectors.
            wired: off, the layers follow one another as in Stable Diffusion's U-Net, and keep their activations.

        Raises:
            UserError: if the decoder does not fit the encoder that pruning left.
        """
        super().__init__()

        def inject_at(level: int, features: int) -> Inject:
            def inject() -> list[nn.Module]:
                if injector_kernel is None:
                    return []
                return [Injector(features, 2 ** (level + 1), steps, image_channels, injector_kernel)]

            return inject

        levels = len(unet.down_blocks)
        features = [block.resnets[0].out_channels for block in unet.down_blocks]
        inject = [inject_at(level, features[level]) for level in range(levels)]
        self.steps = steps
        self.multiple = 2 ** (levels - 1)
        self.conv_in = unet.conv_in
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.down_blocks = nn.ModuleList(
            DownBlock(block, inject[level], wired) for level, block in enumerate(unet.down_blocks)
        )
        self.mid_block = None if unet.mid_block is None else MiddleBlock(unet.mid_block, inject[-1], wired)
        self.up_blocks = nn.ModuleList(
            UpBlock(block, inject[-1 - level], wired) for level, block in enumerate(unet.up_blocks)
        )
        self.conv_norm_out, self.conv_act, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out
        decoder_input = unet.up_blocks[0].resnets[0].in_channels - features[-1]
        self.repeats, rest = divmod(decoder_input, features[-1])
        if rest or not self.repeats:
            raise UserError(
                f"after pruning, the decoder reads {decoder_input} features and the encoder gives {features[-1]}; "
                "choose block_out_channels so that the first is a multiple of the second"
            )
        prompt = None
        if self.mid_block is not None:
            prompt = torch.zeros(1, PROMPT_TOKENS, unet.config.cross_attention_dim)
        self.prompt: Tensor | None
        self.register_buffer("prompt", prompt)

    def forward(self, x: Tensor, step: int, operator: MeasurementOperator, aty: Tensor) -> Tensor:
        """The U-Net's estimate, of x's shape.

        Args:
            x: images ``(N, 4 C, H / 2, W / 2)``: each 2x2 pixels as four channels.
            step: index t - 1 of the sampling step.
            operator: A on images of H x W.
            aty: ``A^T y``, ``(N, C, H, W)``.
        """
        conditions = Conditions(step, operator, aty, self._time(step, x), self._prompt(len(x)))
        x = self.conv_in(x)
        features = [x]
        for block in self.down_blocks:
            features += block(features[-1], conditions)
        x = features[-1].repeat(1, self.repeats, 1, 1)
        if self.mid_block is not None:
            x = self.mid_block(x, conditions)
        for block in self.up_blocks:
            assert isinstance(block, UpBlock)
            skips = [features.pop() for _ in range(block.skips)]
            x = block(x, skips, conditions)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))

    def set_invertible(self, invertible: bool) -> None:
        """Whether activations are computed again in the backward pass, or kept by plain autograd."""
        for module in self.modules():
            if isinstance(module, InvertibleSequence | DownBlock | UpBlock):
                module.invertible = invertible

    def _time(self, step: int, x: Tensor) -> Tensor | None:
        """Embedding of the step, the T steps spread evenly over the steps that the U-Net was trained with."""
        if self.time_embedding is None:
            return None
        timestep = round(TRAINING_TIMESTEPS * (step + 1) / self.steps) - 1
        steps = torch.full((1,), timestep, device=x.device)
        return self.time_embedding(self.time_proj(steps).to(x.dtype))

    def _prompt(self, images: int) -> Tensor | None:
        return None if self.prompt is None else self.prompt.expand(images, -1, -1)
