"""The one interface of everything that reconstructs."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, overload

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from einops import rearrange
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cs_models.errors import UserError
from cs_models.metrics import psnr, ssim
from cs_models.operators import MeasurementOperator, Sampling, SamplingBank, make_operator
from cs_models.operators.bank import mix
from cs_models.operators.carried import CarriedSampling
from cs_models.operators.matrices import tensor_sha256
from cs_models.panels import log_panel
from cs_models.unfolding.recursion import UnfoldingNetwork, check_schedule, draw_schedule

# What an optimiser and its schedule take from a checkpoint.
OPTIMISER_SETTINGS = (
    "learning_rate", "schedule", "warmup_steps", "step_every", "milestones", "step_factor", "weight_decay",
)  # fmt: skip
SMALLEST_LOSS = 1e-12  # whose logarithm is still taken; 120 dB for a squared error


@dataclass(frozen=True)
class Solution:
    """A reconstruction and how it was reached.

    Attributes:
        x: images ``(N, C, H, W)``, not clipped.
        iterations: iterations of each image ``(N,)``; None where the word has no meaning.
        residual: ``|A x - y| / |y|`` of each image ``(N,)``.
        converged: whether the stopping rule was met before the limit on iterations or time ``(N,)``.
    """

    x: Tensor
    iterations: Tensor | None = None
    residual: Tensor | None = None
    converged: Tensor | None = None


class NonFiniteLossError(UserError):
    """Training met a loss that is no finite number."""


class Reconstructor(ABC):
    """Anything that maps (y, A) to an estimate of x: a network, a sampler, a training-free solver."""

    @abstractmethod
    def solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """Reconstruct, and say how it went.

        Args:
            y: measurements of a batch of images, as ``operator(x)`` gives them.
            operator: what was measured; its `image_size` is the size of the result.

        Raises:
            UserError: where the pair of method and operator makes no sense.
        """

    def reconstruct(self, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """The images ``(N, C, H, W)`` of `solve`."""
        return self.solve(y, operator).x

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the result besides y and A, ready for JSON: solver settings, or the weights' sha256."""


@dataclass(frozen=True)
class Training:
    """How a network is trained; one section of the YAML serves every network.

    Attributes:
        sampling: ratios and matrices.
        learning_rate: of Adam, the largest one of the schedule.
        schedule: "constant"; "one_cycle" or "cosine" over all optimiser steps, cosine after a linear warm-up;
            "step" multiplies by `step_factor` every `step_every` steps, or after the steps of `milestones`.
        warmup_steps: of "cosine".
        step_every: of "step".
        milestones: of "step": numbers of steps, in place of `step_every`.
        step_factor: of "step".
        weight_decay: decoupled (AdamW).
        ema_decay: decay of the exponential moving average of the weights, which validation and export then use;
            None for none.
        random_iterations: each training step draws how often each layer is applied, uniformly from 1 up to the
            network's own schedule.
        loss_on: "final", or "all" for the mean over every iteration's output.
        log_loss: minimise the logarithm of each process's batch loss, which is also what is logged. An error then
            counts in proportion, at the high ratios, where all errors are small, as much as at the low ones: of a
            squared error it is the PSNR.
        compile: run the network's layers through torch.compile; the first steps take longer.
        non_finite: what to do where the loss of any process is no finite number: "stop" with an error, or "skip" the
            optimiser's step in all processes and count it.
        panel_images: how many validation images are shown to the logger.
        start_from: a checkpoint of the same architecture whose weights training starts from.
    """

    sampling: Sampling = field(default_factory=Sampling)
    learning_rate: float = 1e-4
    schedule: Literal["constant", "one_cycle", "cosine", "step"] = "constant"
    warmup_steps: int = 0
    step_every: int = 10_000
    milestones: tuple[int, ...] = ()
    step_factor: float = 0.5
    weight_decay: float = 0.0
    ema_decay: float | None = None
    random_iterations: bool = False
    loss_on: Literal["final", "all"] = "final"
    log_loss: bool = False
    compile: bool = False
    non_finite: Literal["stop", "skip"] = "stop"
    panel_images: int = 2
    start_from: str | None = None

    def __post_init__(self) -> None:
        allowed = {
            "learning_rate": (self.learning_rate >= 0, "at least 0"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "step_every": (self.step_every >= 1, "at least 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "ema_decay": (self.ema_decay is None or 0 <= self.ema_decay < 1, "in [0, 1), or null for none"),
        }
        for name, (holds, expected) in allowed.items():
            if not holds:
                raise UserError(f"training.{name} must be {expected}, got {getattr(self, name)}")


class ReconstructionModule(pl.LightningModule, Reconstructor):
    """A network, how it is trained, and what it was sampled with.

    Subclasses give `name`, `config_class` and a network called as ``network(y, operator)``; they override
    `training_loss` where the paper's loss is not a mean squared error.

    Attributes:
        network: maps (y, A) of one-channel images to images.
        config: architecture, a dataclass of plain values.
        without_effect: fields of `config` that change neither weights nor results, such as where weights came from.
        training: how it is trained.
        carried: matrices that travel with the weights.
        provenance: where the weights come from, ready for JSON.
        skipped_batches: how many batches gave no finite loss so far and were passed over.
    """

    name: str
    config_class: type
    without_effect: frozenset[str] = frozenset()
    network: nn.Module

    def __init__(self, network: nn.Module, config: Any, training: Training) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.config = config
        self.training_options = training
        self.bank = SamplingBank(training.sampling)
        self.carried = CarriedSampling()
        self.provenance: dict[str, Any] = {}
        self.skipped_batches = 0
        self._skip_step = False
        self._schedule_steps: int | None = None
        self._resumed_schedule_steps: int | None = None
        self._resumed_training: dict[str, Any] = {}
        self.iterations_per_layer: tuple[int, ...] | None = None
        if training.start_from is not None:
            from cs_models.checkpoints import load_weights

            self.provenance["start_from"] = load_weights(network, training.start_from)
        self.ema = None
        if training.ema_decay is not None:
            from timm.utils import ModelEmaV3

            self.ema = ModelEmaV3(self.network, decay=training.ema_decay, use_warmup=True)
            self.ema.requires_grad_(False)
        if training.compile:
            self.compile_layers()
        self._validation: dict[str, list[Tensor]] = {}
        self._panels: list[tuple[str, Tensor]] = []

    def compile_layers(self) -> None:
        """Run through torch.compile from now on: layer by layer, which all share one compilation, or all at once."""
        layers = self.network.layers if isinstance(self.network, UnfoldingNetwork) else [self.network]
        for layer in layers:
            layer.compile()

    # Reconstruction

    @property
    def evaluated_network(self) -> nn.Module:
        """The network whose results count: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.module

    def solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """Reconstruct images of any number of channels, each channel by itself.

        Raises:
            UserError: if the network cannot work with this operator.
        """
        return Solution(self.reconstruct(y, operator))

    @overload
    def reconstruct(self, y: Tensor, operator: MeasurementOperator, return_all: Literal[False] = False) -> Tensor: ...

    @overload
    def reconstruct(self, y: Tensor, operator: MeasurementOperator, return_all: Literal[True]) -> list[Tensor]: ...

    @torch.no_grad()
    def reconstruct(self, y: Tensor, operator: MeasurementOperator, return_all: bool = False) -> Tensor | list[Tensor]:
        """The images ``(N, C, H, W)``, or those after each iteration of an unfolding network.

        Raises:
            UserError: if the network cannot work with this operator, or has no iterations to return.
        """
        self.accepts(operator)
        network = self.evaluated_network.eval()
        planes = rearrange(y, "n c ... -> (n c) 1 ...")
        if isinstance(network, UnfoldingNetwork):
            estimates = network.unfold(planes, operator, self.iterations_per_layer, keep_all=return_all).iterates
        elif return_all:
            raise UserError(f"{self.name} has no intermediate reconstructions; unfolding networks have")
        else:
            estimates = [network(planes, operator)]
        images = [rearrange(x, "(n c) 1 h w -> n c h w", c=y.shape[1]).float() for x in estimates]
        return images if return_all else images[0]

    def accepts(self, operator: MeasurementOperator) -> None:
        """Raise UserError if the network cannot reconstruct from this operator; the base class takes any."""

    def set_schedule(self, iterations_per_layer: Sequence[int]) -> None:
        """Apply the layers that often from now on.

        Raises:
            UserError: if the network has no layers to repeat, or the schedule does not fit.
        """
        if not isinstance(self.network, UnfoldingNetwork):
            raise UserError(f"{self.name} takes no iterations_per_layer; unfolding networks do")
        self.iterations_per_layer = check_schedule(iterations_per_layer, len(self.network.layers))

    def natural_operator(
        self, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> MeasurementOperator:
        """What the network is evaluated with where nobody says: the carried matrix, or one of training's kind.

        Random matrices are unseen ones of this seed.
        """
        carried = self.carried.operator(ratio, image_size, noise_sigma)
        if carried is not None:
            return carried
        return make_operator(self.training_options.sampling.operator, ratio, image_size, seed, noise_sigma)

    def settings(self) -> dict[str, Any]:
        weights = {key: tensor_sha256(value) for key, value in self.evaluated_network.state_dict().items()}
        digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
        schedule = self.iterations_per_layer or getattr(self.network, "iterations_per_layer", None)
        # Some of it changes what the network computes and no weight.
        architecture = {key: value for key, value in asdict(self.config).items() if key not in self.without_effect}
        return {
            "model": self.name,
            "network": architecture,
            "weights": digest,
            "iterations_per_layer": schedule and list(schedule),
        }

    # Training

    def training_operator(self, image_size: tuple[int, int]) -> MeasurementOperator:
        """What this training step measures with; drawn from the bank unless a subclass learns its sampling."""
        return self.bank.draw(self.global_step, image_size, self.device)

    def training_schedule(self) -> tuple[int, ...] | None:
        """How often each layer is applied in this training step; None for the network's own schedule."""
        if not self.training_options.random_iterations:
            return None
        assert isinstance(self.network, UnfoldingNetwork)
        seed = self.training_options.sampling.seed
        return draw_schedule(self.network.iterations_per_layer, seed, self.global_step)

    def training_loss(
        self, x: Tensor, y: Tensor, operator: MeasurementOperator, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss of a batch of images ``(N, 1, H, W)``; mean squared error unless a subclass says otherwise.

        Args:
            x: the images.
            y: their measurements.
            operator: what measured them.
            generator: random state of this batch, on the CPU; torch's own where it is not given.
        """
        assert isinstance(self.network, UnfoldingNetwork)
        keep_all = self.training_options.loss_on == "all"
        run = self.network.unfold(y, operator, self.training_schedule(), keep_all)
        return torch.stack([F.mse_loss(iterate.float(), x) for iterate in run.iterates]).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch.

        The operator and the schedule are the same in every process, as in one process with the whole batch. The noise
        differs: every process has other images.

        Raises:
            NonFiniteLossError: in all processes, where the loss of any is not finite.
        """
        x = batch.float() / 255
        operator = self.training_operator((x.shape[-2], x.shape[-1]))
        seed = self.training_options.sampling.seed
        generator = torch.Generator().manual_seed(mix(seed, self.global_step, batch_idx, self.global_rank))
        y = operator.measure(x, generator)
        loss = self.training_loss(x, y, operator, generator)
        if self.training_options.log_loss:
            loss = loss.clamp_min(SMALLEST_LOSS).log()
        if not self.trainer.strategy.reduce_boolean_decision(bool(loss.isfinite())):
            if self.training_options.non_finite == "stop":
                raise NonFiniteLossError(f"the loss is not finite at step {self.global_step}: {float(loss)} here")
            self.skipped_batches += 1
            self._skip_step = True
            self.log("train/skipped_batches", float(self.skipped_batches))
            # Gradients of zero, because DDP waits for some.
            return 0 * torch.stack([weight.sum() for weight in self.network.parameters()]).sum()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._skip_step:
            optimizer.zero_grad()  # weights without a gradient stay as they are
            self._skip_step = False

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for fused optimisers under any mixed precision. Only a gradient scaler (fp16),
        # with which the optimiser is not fused, would make that wrong.
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip(self.network.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def constrain(self) -> None:
        """Project the weights to where they must lie, after each optimiser step; by default anywhere."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.constrain()
        # Here, and not in a hook at the end of the batch, which runs after a checkpoint of this step is written.
        if self.ema is not None:
            self.ema.update(self.network, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self._validation, self._panels = {}, []

    def validation_step(self, batch: tuple[Tensor, Sequence[str]], batch_idx: int) -> None:
        x, names = batch
        panels = [x] if batch_idx < self.training_options.panel_images else []
        for ratio in self.training_options.sampling.ratios:
            operator = self.natural_operator(ratio, (x.shape[-2], x.shape[-1])).to(self.device)
            estimate = self.reconstruct(operator(x), operator).clamp(0, 1)
            self._validation.setdefault(f"val/psnr_{100 * ratio:g}", []).append(psnr(estimate, x))
            self._validation.setdefault(f"val/ssim_{100 * ratio:g}", []).append(ssim(estimate, x))
            if panels:
                panels.append(estimate)
        if panels:
            self._panels.append((names[0], torch.cat(panels, dim=-1)[0].cpu()))

    def on_validation_epoch_end(self) -> None:
        means = []
        for key, values in self._validation.items():
            metric = MeanMetric().to(self.device)
            metric.update(torch.cat(values))
            mean = metric.compute()
            self.log(key, mean, rank_zero_only=True)
            if key.startswith("val/psnr"):
                means.append(mean)
        if means:
            self.log("val/psnr", torch.stack(means).mean(), prog_bar=True)
        if self.logger is not None and self.trainer.is_global_zero:
            for image_name, panel in self._panels:
                log_panel(self.logger, f"panel/{image_name.replace('/', '_')}", panel, self.global_step)

    def configure_optimizers(self) -> Any:
        options = self.training_options
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            options.learning_rate,
            weight_decay=options.weight_decay,
            fused=getattr(self.trainer.precision_plugin, "scaler", None) is None,
        )
        if options.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(f"the schedule {options.schedule} needs an end: give --trainer.max_steps or max_epochs")
        self._schedule_steps = int(steps)
        scheduler = _scheduler(optimizer, options, self._schedule_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cs_models"] = self.header()
        checkpoint["skipped_batches"] = self.skipped_batches
        checkpoint["schedule_steps"] = self._schedule_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_batches = checkpoint.get("skipped_batches", 0)
        self._resumed_schedule_steps = checkpoint.get("schedule_steps")
        theirs, ours = (json.loads(json.dumps(header)) for header in (checkpoint["cs_models"], self.header()))
        self._resumed_training = theirs["training"]
        if theirs["model"] != self.name:
            raise UserError(f"the checkpoint holds the network {theirs['model']}, this run trains {self.name}")
        for key in ours["network"].keys() - self.without_effect:
            if theirs["network"].get(key) != ours["network"][key]:
                raise UserError(
                    f"the checkpoint's network has {key} = {theirs['network'].get(key)}, that of this run "
                    f"{key} = {ours['network'][key]}; resume with the configuration that the training started with"
                )

    def on_train_start(self) -> None:
        """Refuse to resume with other settings of the optimiser, which those of the checkpoint would override.

        Raises:
            UserError: if they differ, or the schedule of the checkpoint ends at another step.
        """
        for key in OPTIMISER_SETTINGS if self._resumed_training else ():
            before, now = self._resumed_training.get(key), json.loads(json.dumps(getattr(self.training_options, key)))
            if before != now:
                raise UserError(
                    f"the checkpoint was trained with {key} = {before}, which holds until its end, this run asks for "
                    f"{now}; to change it, start from its weights with --model.init_args.training.start_from FILE"
                )
        planned, kind = self._resumed_schedule_steps, self.training_options.schedule
        if kind in ("one_cycle", "cosine") and planned not in (None, self._schedule_steps):
            raise UserError(
                f"the {kind} schedule of the checkpoint ends at step {planned}, that of this run at step "
                f"{self._schedule_steps}; go on with --trainer.max_steps {planned}, or start from its weights with "
                "--model.init_args.training.start_from FILE"
            )

    def header(self) -> dict[str, Any]:
        """Everything but the weights that `cs_models.checkpoints.load_checkpoint` needs, ready for JSON."""
        return {
            "model": self.name,
            "network": asdict(self.config),
            "training": asdict(self.training_options),
            "carried": self.carried.shapes(),
            "provenance": self.provenance,
        }


def _scheduler(optimizer: torch.optim.Optimizer, options: Training, total: int) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    if options.schedule == "one_cycle":
        return schedulers.OneCycleLR(optimizer, options.learning_rate, total_steps=total)
    if options.schedule == "step" and options.milestones:
        return schedulers.MultiStepLR(optimizer, list(options.milestones), options.step_factor)
    if options.schedule == "step":
        return schedulers.StepLR(optimizer, options.step_every, options.step_factor)
    cosine = schedulers.CosineAnnealingLR(optimizer, max(1, total - options.warmup_steps))
    if options.warmup_steps == 0:
        return cosine
    warmup = schedulers.LinearLR(optimizer, 1 / options.warmup_steps, total_iters=options.warmup_steps)
    return schedulers.SequentialLR(optimizer, [warmup, cosine], [options.warmup_steps])
