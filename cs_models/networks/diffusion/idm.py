"""IDM (Chen et al., "Invertible Diffusion Models for Compressed Sensing", TPAMI 2025).

T steps of diffusion sampling, each with a data-consistency step, become one network that is trained end to end.
Wired invertibly at two levels, over the steps and inside the U-Net, its training memory does not grow with T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.networks.diffusion.stable_diffusion import build_unet, initialise, load_unet, prune, widen
from cs_models.networks.diffusion.unet import Attention, InvertibleUNet
from cs_models.networks.invertible import Chain, InvertibleSequence, Wired, stabilise
from cs_models.operators import MeasurementOperator
from cs_models.operators.bank import mix
from cs_models.operators.canvas import Canvas
from cs_models.operators.matrices import load_matrix
from cs_models.precision import no_tf32
from cs_models.settings import check_range
from cs_models.training.module import ReconstructionModule
from cs_models.training.options import Training

# Where training keeps every alpha, since sqrt(1 - alpha_bar) must stay real.
ALPHA_RANGE = (1e-3, 1 - 1e-3)


Invertible = Literal["both", "steps", "blocks", "none"]


@dataclass(frozen=True)
class IDMConfig:
    """Architecture of IDM; the defaults are the paper's.

    Attributes:
        steps: T, 1 to 12 in the paper.
        channels: 1 for luminance (colour images are then reconstructed channel by channel), 3 for colour.
        unet: changes to the configuration of Stable Diffusion v1.5's U-Net, with diffusers' names, such as
            ``block_out_channels``. Not used with `pretrained`, which brings its own.
        pretrained: diffusers folder or hub id to take the U-Net's weights from, such as
            ``stable-diffusion-v1-5/stable-diffusion-v1-5``. None starts at random and needs no network access.
        pruned: off, the whole U-Net is kept, with time embedding and a null prompt.
        null_prompt: `.npy` file with the text encoder's embedding ``(77, width)`` of the empty prompt; zeros
            where it is not given. Only for ``pruned: false``.
        injector_kernel: 1 or 3; None for no injectors.
        wired: off, steps and layers follow one another without pairs and couplings, as in DDNM with Stable Diffusion's
            U-Net, and keep their activations, whatever `invertible` says.
        invertible: what of the wiring keeps no activations: "both" levels, the "steps", the U-Net's "blocks", "none".
            It changes neither parameters nor results.
        start: ``x_T`` from "back_projection", or from white "noise".
    """

    steps: int = 3
    channels: Literal[1, 3] = 1
    unet: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    pruned: bool = True
    null_prompt: str | None = None
    injector_kernel: Literal[1, 3] | None = 1
    wired: bool = True
    invertible: Invertible = "both"
    start: Literal["back_projection", "noise"] = "back_projection"

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, 1000)


@dataclass(frozen=True)
class IDMTraining(Training):
    """How IDM is trained.

    Attributes:
        objective: "image", the mean absolute error of what all steps together make of the measurements; or "noise", as
            diffusion models are trained: the mean squared error of the noise that the U-Net finds in the noisy images
            of one step, which every training step draws. The alphas then stay as they are, and so do the injectors of
            the other steps, so several processes need a strategy that finds unused parameters.
    """

    objective: Literal["image", "noise"] = "image"


def estimate_noise(unet: nn.Module, x: Tensor, t: int, operator: MeasurementOperator, aty: Tensor) -> Tensor:
    """The noise that a U-Net finds in ``x_t`` ``(N, C, H, W)``, which it sees as 2x2 pixels in four channels."""
    return F.pixel_shuffle(unet(F.pixel_unshuffle(x, 2), t - 1, operator, aty), 2).to(x.dtype)


class DiffusionStep(nn.Module):
    """One step of sampling from t to t - 1 with range-space correction (the paper's Eq. 3, DDNM with eta = 0).

    It has no parameters: those of a step are handed to it.
    """

    def __init__(self, t: int) -> None:
        super().__init__()
        self.t = t

    def forward(
        self,
        x: Tensor,
        unet: nn.Module,
        alpha_bar: Tensor,
        next_alpha_bar: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        aty: Tensor,
    ) -> Tensor:
        """``x_{t-1}`` from ``x_t``, both ``(N, C, H, W)``.

        Args:
            x: ``x_t``.
            unet: see `estimate_noise`.
            alpha_bar: of t.
            next_alpha_bar: of t - 1.
            y: measurements.
            operator: A.
            aty: ``A^T y``, for the injectors.
        """
        noise = estimate_noise(unet, x, self.t, operator, aty)
        clean = (x - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
        # With orthonormal rows A^+ = A^T, as the paper writes it.
        clean = clean - operator.pinv(operator(clean) - y)
        return next_alpha_bar.sqrt() * clean + (1 - next_alpha_bar).sqrt() * noise


class IDM(nn.Module):
    """The network.

    Attributes:
        config: the architecture with everything that `pretrained` brought written out, so that it can be built
            again without it.
        unet: shared by the steps; its injectors are each step's own.
        alphas: ``(T,)``; ``alpha_bar_t`` is the product of the first t.
        wiring: the steps T .. 1.
    """

    def __init__(self, config: IDMConfig = IDMConfig()) -> None:
        """
        Args:
            config: architecture.

        Raises:
            UserError: for settings that make no network, or if the pre-trained U-Net is not found.
        """
        super().__init__()
        if config.null_prompt is not None and config.pruned:
            raise UserError("null_prompt belongs to the whole U-Net; set pruned to false or leave it out")
        unet = build_unet(config.unet) if config.pretrained is None else load_unet(config.pretrained)
        if unet.config.in_channels != 4 or unet.config.out_channels != 4:
            raise UserError("IDM needs a U-Net with 4 input and 4 output channels, one for each of 2x2 pixels")
        settings = {name: value for name, value in unet.config.items() if not name.startswith("_")}
        self.config = replace(config, unet=settings, pretrained=None, null_prompt=None)
        if config.pruned:
            prune(unet)
        if config.pretrained is None:
            initialise(unet)
        if config.channels != 1:
            widen(unet, config.channels)
        self.unet = InvertibleUNet(unet, config.steps, config.channels, config.injector_kernel, config.wired)
        if config.null_prompt is not None:
            self._load_prompt(config.null_prompt)
        self.alphas = nn.Parameter(torch.full((config.steps,), 0.5))
        steps = [DiffusionStep(t) for t in range(config.steps, 0, -1)]
        # The steps divide by sqrt(alpha), so rounding grows faster than inside the U-Net; their pair is small.
        self.wiring = Wired(steps, precision=torch.float64) if config.wired else Chain(steps)
        self.set_invertible(config.invertible)

    def _load_prompt(self, path: str) -> None:
        assert self.unet.prompt is not None
        prompt, expected = load_matrix(path), tuple(self.unet.prompt.shape[1:])
        if prompt.shape != expected:
            raise UserError(f"{path} holds {tuple(prompt.shape)}; the null prompt of this U-Net is {expected}")
        self.unet.prompt.copy_(prompt)

    def forward(self, y: Tensor, operator: MeasurementOperator, generator: torch.Generator | None = None) -> Tensor:
        """Reconstruct images ``(N, C, H, W)``; not clipped.

        Args:
            y: measurements ``(N, C, ...)``. A network for one channel takes any C, channel by channel.
            operator: A. Images whose sides blocks or U-Net do not divide are padded with zeros and cropped again.
            generator: random state of ``x_T`` where the configuration starts from noise, on the CPU. Where it is not
                given, training draws anew and evaluation starts from the same noise every time.

        Raises:
            UserError: if a network for colour gets measurements of one channel.
        """
        image_channels = y.shape[1]
        if self.config.channels == 1:
            y = rearrange(y, "n c ... -> (n c) 1 ...")
        elif image_channels != self.config.channels:
            raise UserError(f"this IDM is for {self.config.channels} channels, the measurements have {image_channels}")
        canvas = self._canvas(operator.padded())
        aty = canvas.adjoint(y)
        alpha_bars = [self.alphas.new_ones(()), *self.alphas.cumprod(dim=0)]
        if self.config.start == "back_projection":
            start = alpha_bars[-1].sqrt() * canvas.pinv(y)
        else:
            if generator is None and not self.training:
                generator = torch.Generator().manual_seed(0)
            start = torch.randn(aty.shape, generator=generator, dtype=aty.dtype).to(aty.device, non_blocking=True)
        contexts = [
            (self.unet, alpha_bars[t], alpha_bars[t - 1], y, canvas, aty) for t in range(self.config.steps, 0, -1)
        ]
        height, width = operator.image_size
        x = self.wiring(start, contexts)[..., :height, :width]
        return rearrange(x, "(n c) 1 h w -> n c h w", c=image_channels) if self.config.channels == 1 else x

    def noise(self, x: Tensor, t: int, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """The noise that the U-Net finds in ``x_t``, both ``(N, C, H, W)``; arguments as in `forward`."""
        canvas = self._canvas(operator.padded())
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, canvas.image_size[1] - width, 0, canvas.image_size[0] - height))
        return estimate_noise(self.unet, padded, t, canvas, canvas.adjoint(y))[..., :height, :width]

    def _canvas(self, operator: MeasurementOperator) -> MeasurementOperator:
        """The operator on an image whose sides the U-Net divides."""
        multiple = 2 * self.unet.multiple
        height, width = (math.ceil(side / multiple) * multiple for side in operator.image_size)
        return operator if (height, width) == operator.image_size else Canvas(operator, (height, width))

    def set_invertible(self, invertible: Invertible) -> None:
        """Which levels keep no activations; see `IDMConfig`."""
        if isinstance(self.wiring, Wired):
            self.wiring.sequence.invertible = invertible in ("both", "steps")
        self.unet.set_invertible(self.config.wired and invertible in ("both", "blocks"))

    def all_v(self) -> list[Tensor]:
        """The coupling weights of every invertible sequence."""
        return [module.v for module in self.modules() if isinstance(module, InvertibleSequence)]

    @torch.no_grad()
    def constrain(self) -> None:
        """Project the v's and alphas to where inversion is stable and every step is defined."""
        self.alphas.clamp_(*ALPHA_RANGE)
        stabilise(self)


class IDMModule(ReconstructionModule):
    """IDM for training: mean absolute error of the last step's image, or the noise of single steps."""

    name = "idm"
    config_class = IDMConfig
    training_class = IDMTraining
    without_effect = frozenset({"pretrained", "null_prompt", "invertible"})
    most_graphs = 64  # blocks have other channels at every level, and run once without and once with gradients
    network: IDM
    training_options: IDMTraining

    def __init__(self, network: IDMConfig = IDMConfig(), training: IDMTraining = IDMTraining()) -> None:
        """
        Args:
            network: architecture.
            training: sampling, objective, optimiser, schedule.
        """
        idm = IDM(network)
        super().__init__(idm, idm.config, training)

    def compiled_parts(self) -> list[nn.Module]:
        """The residual blocks and transformers of the U-Net; the wiring around them runs no kernels to speak of."""
        return [part for part in self.network.unet.modules() if isinstance(part, ResnetBlock2D | Attention)]

    def training_loss(
        self,
        x: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if self.training_options.objective == "noise":
            return self._noise_loss(x, y, operator, step, generator)
        return F.l1_loss(self.network(y, operator, generator).float(), x)

    def _noise_loss(
        self, x: Tensor, y: Tensor, operator: MeasurementOperator, step: int, generator: torch.Generator | None
    ) -> Tensor:
        """The noise in the images of a sampling step, the same step in every process."""
        draw = torch.Generator().manual_seed(mix(self.training_options.sampling.seed, step, 1))
        t = int(torch.randint(1, self.network.config.steps + 1, (), generator=draw))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device, non_blocking=True)
        alpha_bar = self.network.alphas.detach()[:t].prod()
        noisy = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
        return F.mse_loss(self.network.noise(noisy, t, y, operator).float(), noise)

    def monitored(self) -> dict[str, Tensor]:
        """What must stay in range for inversion to be stable and every step to be defined."""
        values = self.network.all_v()
        smallest = {"smallest_v": torch.cat(values).min()} if values else {}
        return smallest | {"largest_alpha": self.network.alphas.max()}

    def constrain(self) -> None:
        self.network.constrain()

    @torch.no_grad()
    def images(self, y: Tensor, operator: MeasurementOperator, return_all: bool = False) -> list[Tensor]:
        """As in the base class, but a network for colour takes the channels together."""
        if return_all or self.config.channels == 1:
            return super().images(y, operator, return_all)
        self.begin_step()
        with no_tf32():
            image = self.evaluated_network.eval()(y, operator).float()
        return [image.clone() if self.repeats_kernels else image]
