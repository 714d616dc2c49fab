"""DDNM: zero-shot reconstruction by a frozen diffusion model.

Wang, Yu, Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", ICLR 2023. Every sampling
step estimates the clean image, replaces the part of it that was measured (``A^+ A x_0`` by ``A^+ y``), and goes on.
Any linear operator with a pseudo-inverse will do; nothing is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from einops import rearrange
from torch import Tensor, nn

from cs_models.errors import UserError, first_line
from cs_models.networks.diffusion.stable_diffusion import PROMPT_TOKENS, load_unet
from cs_models.numerics import relative
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.operators.canvas import Canvas
from cs_models.operators.matrices import load_matrix, module_sha256
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver, check_measurements
from cs_models.solvers.convex import has_orthonormal_rows


class DiffusionModel(nn.Module):
    """A frozen U-Net of diffusers that estimates the noise in images, with the noise schedule of its training.

    Unconditional pipelines (`UNet2DModel`) see pixels; of networks that estimate the variance too, that part is left
    out. Stable Diffusion's (`UNet2DConditionModel`) is used without its latent space, as the IDM paper does: its four
    channels are 2x2 pixels of one plane, its prompt is the null prompt.

    Attributes:
        channels: of the images that it knows, 1 or 3.
        multiple: what height and width of its images must be multiples of.
        alpha_bars: ``(T,)`` in float64, the share of the image's variance in ``x_t``.
    """

    def __init__(self, folder: str, null_prompt: str | None = None) -> None:
        """
        Args:
            folder: a diffusers pipeline: ``unet/`` and ``scheduler/``, or the files of both side by side.
            null_prompt: `.npy` file with the embedding ``(77, width)`` of the empty prompt; zeros where it is not
                given. For Stable Diffusion's U-Net only.

        Raises:
            UserError: if the folder holds no such pipeline, or one that estimates something else than noise.
        """
        super().__init__()
        root = Path(folder).expanduser()
        config = _read_config(root)
        schedule = DDPMScheduler.from_pretrained(root, subfolder=_subfolder(root, "scheduler"))
        if schedule.config.prediction_type != "epsilon":
            raise UserError(f"{root} estimates '{schedule.config.prediction_type}'; DDNM needs 'epsilon', the noise")
        self.alpha_bars = schedule.alphas_cumprod.double()
        self.conditional = config["_class_name"] == "UNet2DConditionModel"
        self.unet = load_unet(folder) if self.conditional else _load_unconditional(root)
        inputs, outputs = self.unet.config.in_channels, self.unet.config.out_channels
        accepted = ((4, 4),) if self.conditional else ((1, 1), (1, 2), (3, 3), (3, 6))
        if (inputs, outputs) not in accepted:
            raise UserError(
                f"the U-Net in {root} maps {inputs} channels to {outputs}; DDNM works with U-Nets on pixels: "
                "1 or 3 channels, or Stable Diffusion's 4"
            )
        self.channels = 1 if self.conditional else inputs
        self.multiple = 2 ** (len(self.unet.config.block_out_channels) - 1) * (2 if self.conditional else 1)
        self.prompt: Tensor | None
        self.register_buffer("prompt", self._prompt(null_prompt))
        self.requires_grad_(False).eval()

    def _prompt(self, path: str | None) -> Tensor | None:
        if not self.conditional:
            if path is not None:
                raise UserError("null_prompt belongs to Stable Diffusion's U-Net; this one takes no prompt")
            return None
        shape = (PROMPT_TOKENS, self.unet.config.cross_attention_dim)
        prompt = torch.zeros(shape) if path is None else load_matrix(path).float()
        if prompt.shape != shape:
            raise UserError(f"{path} holds {tuple(prompt.shape)}; the null prompt of this U-Net is {shape}")
        return prompt[None]

    def forward(self, x: Tensor, t: int) -> Tensor:
        """The noise in ``x_t`` ``(N, channels, H, W)``, images in [-1, 1], in x's dtype."""
        features = x.to(self.unet.dtype)
        step = torch.full((), t, device=x.device)  # of a number diffusers makes a tensor that it copies to the device
        if not self.conditional:
            return self.unet(features, step).sample[:, : self.channels].to(x.dtype)
        assert self.prompt is not None
        prompt = self.prompt.expand(len(x), -1, -1)
        noise = self.unet(F.pixel_unshuffle(features, 2), step, encoder_hidden_states=prompt).sample
        return F.pixel_shuffle(noise, 2).to(x.dtype)


def _read_config(root: Path) -> dict[str, Any]:
    path = root / (_subfolder(root, "unet") or ".") / "config.json"
    scheduler = root / (_subfolder(root, "scheduler") or ".") / "scheduler_config.json"
    for file in (path, scheduler):
        if not file.is_file():
            raise UserError(f"no diffusion model in '{root}': {file} is missing; give a folder that diffusers wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}".splitlines()[0]) from error
    known = ("UNet2DModel", "UNet2DConditionModel")
    if not isinstance(config, dict) or config.get("_class_name") not in known:
        raise UserError(f"{path} describes no U-Net of diffusers; expected _class_name {' or '.join(known)}")
    return config


def _load_unconditional(root: Path) -> UNet2DModel:
    try:
        return UNet2DModel.from_pretrained(
            root,
            subfolder=_subfolder(root, "unet"),
            use_safetensors=True,
            low_cpu_mem_usage=False,  # else diffusers asks for a package that is not needed
        )
    except Exception as error:  # diffusers and safetensors each have their own
        reason = first_line(error)
        raise UserError(f"cannot load the U-Net in '{root}': {reason}") from error


def _subfolder(root: Path, name: str) -> str | None:
    return name if (root / name).is_dir() else None


@dataclass(kw_only=True)
class DDNM(IterativeSolver):
    """Sampling from a frozen diffusion model under the constraint ``A x = y``.

    Without noise the result is consistent to rounding: ``|A x - y| / |y|`` is about 1e-6 in float32. With noise the
    correction is weakened where the measurements are noisier than the step, so that their noise counts as part of
    the step's own (DDNM+, Eq. 17-19); that needs an operator with a matrix, or with orthonormal rows.

    Every image of a batch meets the same noise, so its result does not depend on the batch. Grey images are given to
    a model for colour as three equal channels, and colour images to a model for grey channel by channel. Where the
    U-Net does not divide the image's sides, it works on a larger image whose margin is not measured.

    Attributes:
        model: folder of a diffusers pipeline, see `DiffusionModel`.
        steps: sampling steps, 1 up to the model's own (1000).
        eta: share of fresh noise in each step, 0 to 1; 0 keeps the estimated noise (IDM's step).
        spacing: which of the model's steps are used: "leading" begins below the noisiest (990, 980 .. 0 with 100
            steps, as released); "trailing" at it (999, 989 .. 9), which suits few steps.
        travel_length: steps that time travel goes back.
        travel_repeats: how often each stretch of `travel_length` steps is gone through; 1 is no time travel.
        sigma: standard deviation of the measurements' noise, for images in [0, 1]; None takes the operator's.
        null_prompt: see `DiffusionModel`.
        seed: of the sampling's noise.

    Raises:
        UserError: for settings outside their range, or without a model.
    """

    model: str | None = None
    steps: int = 100
    eta: float = 0.85
    spacing: Literal["leading", "trailing"] = "leading"
    travel_length: int = 1
    travel_repeats: int = 1
    sigma: float | None = None
    null_prompt: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            raise UserError("ddnm needs a diffusion model: ddnm:model=FOLDER, the folder of a diffusers pipeline")
        self._require(0 <= self.eta <= 1, "eta", "0 to 1")
        self._require(self.spacing in ("leading", "trailing"), "spacing", "leading or trailing")
        self._require(self.travel_length >= 1, "travel_length", "at least 1")
        self._require(self.travel_repeats >= 1, "travel_repeats", "at least 1")
        self._require(self.sigma is None or self.sigma >= 0, "sigma", "0 or more")
        self._diffusion = DiffusionModel(self.model, self.null_prompt)
        self._require(1 <= self.steps <= len(self._diffusion.alpha_bars), "steps", "1 up to the model's own")

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"model": module_sha256(self._diffusion), "null_prompt": None}

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        """As they are: the steps use the pseudo-inverse and the singular vectors of any matrix, and its white noise."""
        return y, operator

    @torch.no_grad()
    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        check_measurements(y, operator)
        self._diffusion.to(y.device)
        image_channels = y.shape[1]
        planes = rearrange(y, "n c ... -> (n c) 1 ...") if self._diffusion.channels == 1 else y
        if image_channels < self._diffusion.channels:
            planes = planes.expand(-1, self._diffusion.channels, *planes.shape[2:])
        x, iterations, finished = self._sample(planes, operator)
        x = x.mean(1, keepdim=True) if image_channels < x.shape[1] else x
        x = rearrange(x, "(n c) k h w -> n (c k) h w", n=len(y))
        counts = torch.full((len(y),), iterations, device=y.device)
        return Solution(x, counts, relative(operator(x) - y, y), torch.full_like(counts, finished, dtype=torch.bool))

    def _sample(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, int, bool]:
        """Images ``(N, channels, H, W)`` in [0, 1], evaluations of the U-Net, and whether all of them ran."""
        sigma = 2 * (operator.noise_sigma if self.sigma is None else self.sigma)
        height, width = operator.image_size
        # The model's images lie in [-1, 1]: x = 2 image - 1.
        y = 2 * y - operator(torch.ones(1, 1, height, width, dtype=y.real.dtype, device=y.device))
        multiple = self._diffusion.multiple
        measured = operator if sigma == 0 else operator.padded()
        rows, columns = (math.ceil(side / multiple) * multiple for side in measured.image_size)
        canvas = Canvas(measured, (rows, columns))
        data = ExactData(y, canvas) if sigma == 0 else NoisyData(y, canvas, sigma)

        generator = torch.Generator().manual_seed(self.seed)

        def draw() -> Tensor:
            shape = (1, self._diffusion.channels, rows, columns)
            noise = torch.randn(shape, generator=generator, dtype=y.real.dtype)
            return noise.to(y.device, non_blocking=True).expand(len(y), -1, -1, -1)

        times = self.timesteps()
        bars = [*self._diffusion.alpha_bars[times].tolist(), 1.0]
        x = draw()
        clean = torch.zeros_like(x)
        path = list(travel(self.steps, self.travel_length, self.travel_repeats))
        evaluations = sum(after > before for before, after in path)
        done = 0
        with self.run(evaluations) as run:
            for before, after in path:
                bar, next_bar = bars[before], bars[after]
                if after < before:
                    x = math.sqrt(next_bar) * clean + math.sqrt(1 - next_bar) * draw()
                    continue
                if not run.step():
                    break
                noise = self._diffusion(x, times[before])
                clean = (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)
                x = data.step(clean, noise, draw(), next_bar, self.eta)
                done += 1
        if done < evaluations:
            x = data.step(clean, clean, clean, 1.0, self.eta)
        return (x[..., :height, :width] + 1) / 2, done, done == evaluations

    def timesteps(self) -> list[int]:
        """The model's steps that are used, the noisiest first."""
        total = len(self._diffusion.alpha_bars)
        if self.spacing == "leading":
            return [i * (total // self.steps) for i in reversed(range(self.steps))]
        return [round(total * (self.steps - i) / self.steps) - 1 for i in range(self.steps)]


def travel(steps: int, length: int, repeats: int) -> Iterator[tuple[int, int]]:
    """The path of sampling as pairs (from, to); `to` is the next step, or `length` steps earlier in time travel.

    Args:
        steps: number of steps; they are numbered 0 (the noisiest) to `steps` (the result).
        length: of a stretch.
        repeats: how often each stretch is gone through; stretches are counted from the end.
    """
    left = {steps - 1 - below: repeats - 1 for below in range(0, steps - length, length)}
    place = 0
    while place < steps:
        if left.get(place, 0) > 0:
            left[place] -= 1
            yield place, place - length
            place -= length
        yield place, place + 1
        place += 1


class ExactData:
    """The step under ``A x = y``: the measured part of the clean image is replaced (Eq. 11-13 of the paper)."""

    def __init__(self, y: Tensor, canvas: Canvas) -> None:
        """
        Args:
            y: measurements of images in [-1, 1].
            canvas: A on the model's images.
        """
        self.y, self.canvas = y, canvas

    def step(self, clean: Tensor, noise: Tensor, fresh: Tensor, alpha_bar: float, eta: float) -> Tensor:
        """The next, less noisy image ``(N, C, H, W)``.

        Args:
            clean: estimate of the clean image.
            noise: estimate of the noise.
            fresh: white noise.
            alpha_bar: of the next image.
            eta: share of fresh noise.
        """
        clean = clean - self.canvas.pinv(self.canvas(clean) - self.y)
        mixed = eta * fresh + math.sqrt(1 - eta**2) * noise
        return math.sqrt(alpha_bar) * clean + math.sqrt(1 - alpha_bar) * mixed


class NoisyData:
    """The step under ``A x = y + noise``, in coordinates in which every measurement stands alone (DDNM+).

    With ``A = U S V^T`` they are ``V^T x``, measured as ``S^-1 U^T y`` with noise of ``sigma / s`` each. Operators
    pad images to whole blocks here, so that all blocks have the same singular vectors.
    """

    def __init__(self, y: Tensor, canvas: Canvas, sigma: float) -> None:
        """
        Args:
            y: measurements of images in [-1, 1].
            canvas: A on the model's images.
            sigma: of the noise on y.

        Raises:
            UserError: if the singular vectors of the operator are not at hand.
        """
        operator = canvas.operator
        self.y, self.sigma = y, torch.tensor(sigma, dtype=y.real.dtype, device=y.device)
        self._analysis: Callable[[Tensor], Tensor] = canvas.forward
        self._synthesis: Callable[[Tensor], Tensor] = canvas.adjoint
        if isinstance(operator, MatrixOperator) and not operator.orthonormal:
            factors = operator.rows.factors(operator.matrix)
            inverse, vt = factors.inverse.to(y), factors.basis.to(y)
            self.y, self.sigma = y @ inverse, (sigma / factors.values).to(y)
            self._analysis = lambda x: operator.signals(operator.crop(x)) @ vt.T
            self._synthesis = lambda k: F.pad(operator.image(k @ vt), canvas.margin)
        elif not isinstance(operator, MatrixOperator) and not has_orthonormal_rows(operator):
            raise UserError(
                f"ddnm's step for noisy measurements needs a matrix or orthonormal rows, and "
                f"'{operator.spec['kind']}' sampling has neither; treat the measurements as exact with ddnm:sigma=0"
            )

    def step(self, clean: Tensor, noise: Tensor, fresh: Tensor, alpha_bar: float, eta: float) -> Tensor:
        """See `ExactData.step`; Eq. 17-19 of the paper."""
        a, c = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        inherited = a * self.sigma
        exact = c >= inherited
        correction = torch.where(exact, 1.0, c * math.sqrt(1 - eta**2) / inherited)
        spread = torch.where(exact, (c**2 - inherited**2).clamp_min(0).sqrt(), c * eta)
        measured = self._analysis(clean)
        inside = a * (measured - correction * (measured - self.y)) + spread * self._analysis(fresh)
        outside = a * clean + c * (eta * fresh + math.sqrt(1 - eta**2) * noise)
        return outside + self._synthesis(inside - self._analysis(outside))
