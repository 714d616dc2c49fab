"""The one LightningModule, which trains any `ReconstructionModule`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric

from cs_models.errors import UserError
from cs_models.metrics import psnr, ssim
from cs_models.operators import MeasurementOperator
from cs_models.operators.bank import mix
from cs_models.operators.base import MatrixOperator
from cs_models.precision import forbid_tf32
from cs_models.training.agreement import Agreement, HostCopy
from cs_models.training.module import ReconstructionModule
from cs_models.training.muon import Muon
from cs_models.training.options import OPTIMISER_SETTINGS, Training
from cs_models.training.panels import log_panel
from cs_models.training.sharding import gather, release, shard
from cs_models.training.step_graphs import StepGraphs
from cs_models.training.supervision import unsupervised_loss

SMALLEST_LOSS = 1e-12  # whose logarithm is still taken; 120 dB for a squared error


class NonFiniteLossError(UserError):
    """The loss of a training step is not a finite number, or too many steps in a row had to be skipped."""


class LightningTraining(pl.LightningModule):
    """Trains a method: measures, computes its loss, optimises, validates, averages weights, resumes.

    Attributes:
        method: what is trained.
        skipped_steps: how many steps had no finite loss or no finite gradients so far and were passed over.
        measured: what took the measurements, where a set of these is trained on and there are no images.
    """

    method: ReconstructionModule
    measured: MeasurementOperator | None

    def __init__(self, method: ReconstructionModule) -> None:
        """
        Args:
            method: what is trained; its `training_options` say how.
        """
        super().__init__()
        options = method.training_options
        if options.ema_decay is not None:
            from timm.utils import ModelEmaV3

            method.ema = ModelEmaV3(method.network, decay=options.ema_decay, use_warmup=True).requires_grad_(False)
        if options.compile:
            method.compile_layers(options.compile_mode)
        # Its parts are registered here, not itself: checkpoints name weights as `network...`, whoever trains them.
        self.__dict__["method"] = method
        self.__dict__["measured"] = None
        for name, part in method.named_children():
            self.add_module(name, part)
        self.skipped_steps = 0
        self._skips_in_a_row = 0
        self._skip_step = False
        self._stepped = False
        self._loss: HostCopy | None = None
        self._agreement: Agreement | None = None
        self._graphs: StepGraphs | None = None
        self._schedule_steps: int | None = None
        self._resumed_schedule_steps: int | None = None
        self._resumed_training: dict[str, Any] = {}
        self._validation: dict[str, list[Tensor]] = {}
        self._panels: list[tuple[str, Tensor]] = []
        self._operators: dict[tuple[float, tuple[int, int]], MeasurementOperator] = {}

    @property
    def options(self) -> Training:
        """How the method is trained."""
        return self.method.training_options

    def configure_model(self) -> None:
        """Under the strategy `FSDP`, split the network and its moving average over the processes."""
        network, mesh = self.method.network, self.device_mesh
        if mesh is None or isinstance(network, FSDPModule):
            return
        shard(network, mesh)
        if self.method.ema is not None:
            shard(self.method.evaluated_network, mesh)

    def setup(self, stage: str) -> None:
        forbid_tf32()
        self.__dict__["measured"] = getattr(getattr(self.trainer, "datamodule", None), "operator", None)

    def on_fit_start(self) -> None:
        self._agreement = Agreement()
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self.method.prepare(datamodule.training_patches)
        if self.options.cuda_graphs:
            self._record_steps(datamodule)

    def _record_steps(self, datamodule: Any) -> None:
        """Record training steps of this training's batches.

        Here and not at the first step: data loaders start threads then, whose calls a recording does not tolerate.
        """
        self._check_recordable(datamodule)
        x = datamodule.training_patches(datamodule.batch_size).to(self.device).float() / 255
        with self.trainer.precision_plugin.forward_context():
            self._graphs = StepGraphs(self.method, x)

    def _check_recordable(self, datamodule: Any) -> None:
        """Raise UserError where a recording cannot stand for the steps."""
        if datamodule is None or self.measured is not None:
            raise UserError("training.cuda_graphs is for batches of images of a PatchDataModule; set it false")
        if self.trainer.accumulate_grad_batches > 1 or isinstance(self.method.network, FSDPModule):
            raise UserError(
                "training.cuda_graphs holds the gradients of one batch and whole weights: it goes with "
                "trainer.accumulate_grad_batches 1, and not with the strategy FSDP"
            )
        if self.device.type != "cuda":
            raise UserError(
                f"training.cuda_graphs records kernels of a CUDA GPU, and this training runs on {self.device.type}; "
                "set it false"
            )

    # Steps

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch of images, or of measurements where a set of these is trained on.

        The operator and the schedule are the same in every process, as in one process with the whole batch. The noise
        differs: every process has other images.
        """
        self.method.begin_step()
        seed = self.options.sampling.seed
        generator = torch.Generator().manual_seed(mix(seed, self.global_step, batch_idx, self.global_rank))
        if self.measured is not None:
            y, operator = self.method.prepared(batch, self.measured.to(self.device))
        else:
            x = batch.float() / 255
            operator = self.method.training_operator((x.shape[-2], x.shape[-1]), self.global_step, self.device)
            y = operator.measure(x, generator)
        if self._graphs is not None:
            assert isinstance(operator, MatrixOperator)
            loss = self._graphs.loss(x, y, operator)
        elif self.options.supervision == "ground_truth":
            loss = self.method.training_loss(x, y, operator, self.global_step, generator)
        else:
            loss = unsupervised_loss(self.method, y, operator, self.global_step, generator)
        # Here and not before: under FSDP each process holds whole weights from the forward pass on.
        self.log_dict({f"train/{name}": value for name, value in self.method.monitored().items()})
        if self.options.log_loss:
            loss = loss.clamp_min(SMALLEST_LOSS).log()
        self._loss = HostCopy(loss)
        return loss

    def on_after_backward(self) -> None:
        """Look at the loss, which the host must know before the optimiser may spoil the weights with it.

        Here the backward pass is queued, so that a GPU has something to do while the host waits for the forward pass.

        Raises:
            NonFiniteLossError: in all processes, where the loss of any is not finite and steps are not to be skipped.
        """
        assert self._loss is not None
        assert self._agreement is not None
        loss = self._loss.read()
        if self._agreement.all(bool(loss.isfinite())):
            self.log("train/loss", loss, prog_bar=True)  # that of the device would be read once more
        elif self.options.non_finite == "skip" or (self.options.non_finite == "auto" and self._scaled):
            self._skip_step = True
        else:
            raise NonFiniteLossError(f"the loss is not finite at step {self.global_step}: {float(loss)} here")

    @property
    def _scaled(self) -> bool:
        """Whether losses are scaled for float16, and steps skipped whose gradients overflow."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._skip_step:
            optimizer.zero_grad()  # weights without a gradient stay as they are

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for fused optimisers under any mixed precision. Only a gradient scaler (fp16),
        # with which the optimiser is not fused, would make that wrong.
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision)
        if gradient_clip_val and mixed and not self._scaled:
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip(self.method.network.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._stepped = False
        super().optimizer_step(*args, **kwargs)
        if self._skip_step or not self._stepped:
            self._count_skip()
            return
        self._skips_in_a_row = 0
        self.method.constrain()
        # Here, and not in a hook at the end of the batch, which runs after a checkpoint of this step is written.
        average: Any = self.method.ema
        if average is not None:
            average.update(self.method.network, step=self.global_step)

    def _count_skip(self) -> None:
        """Count a step that changed nothing, since the loss was not finite or the scaler found an overflow.

        Raises:
            NonFiniteLossError: if there were too many in a row.
        """
        self._skip_step = False
        self.skipped_steps += 1
        self._skips_in_a_row += 1
        self.log("train/skipped_steps", float(self.skipped_steps))
        if self._skips_in_a_row >= self.options.most_skips:
            raise NonFiniteLossError(
                f"the last {self._skips_in_a_row} steps, up to step {self.global_step}, had no finite loss or gradients"
                "; go on from an earlier checkpoint with a lower learning rate, or in bf16-mixed or 32-true"
            )

    def _note_step(self, *_: Any) -> None:
        self._stepped = True
        # torch does not count what fused optimisers change, and what is remembered of the weights would stay.
        increment_version(list(self.method.network.parameters()))

    # Validation

    def on_validation_epoch_start(self) -> None:
        self._validation, self._panels, self._operators = {}, [], {}
        # Once for all images, of which the processes may have different numbers.
        gather(self.method.evaluated_network)

    def validation_step(self, batch: tuple[Tensor, Sequence[str]], batch_idx: int) -> None:
        x, names = batch
        panels = [x] if batch_idx < self.options.panel_images else []
        ratios = self.options.validation_ratios or self.options.sampling.ratios
        for ratio in ratios if self.measured is None else (self.measured.ratio,):
            operator = self._operator(ratio, (x.shape[-2], x.shape[-1]))
            estimate = self.method.reconstruct(operator(x), operator).clamp(0, 1)
            self._validation.setdefault(f"val/psnr_{100 * ratio:g}", []).append(psnr(estimate, x))
            self._validation.setdefault(f"val/ssim_{100 * ratio:g}", []).append(ssim(estimate, x))
            if panels:
                panels.append(estimate)
        if panels:
            self._panels.append((names[0], torch.cat(panels, dim=-1)[0].cpu()))

    def _operator(self, ratio: float, image_size: tuple[int, int]) -> MeasurementOperator:
        """What validation measures with; images of one size share it, since its matrix takes long to draw."""
        key = ratio, image_size
        if key not in self._operators:
            measured = None if self.measured is None else self.measured.resized(*image_size)
            self._operators[key] = (measured or self.method.default_operator(ratio, image_size)).to(self.device)
        return self._operators[key]

    def on_validation_epoch_end(self) -> None:
        release(self.method.evaluated_network)
        self._operators = {}
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

    # Optimiser and checkpoints

    def configure_optimizers(self) -> Any:
        options = self.options
        optimizer = self._optimizer()
        # A scaler that finds an overflow does not call the optimiser, and tells nobody.
        optimizer.register_step_post_hook(self._note_step)
        if options.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(f"the schedule {options.schedule} needs an end: give --trainer.max_steps or max_epochs")
        self._schedule_steps = int(steps)
        scheduler = _scheduler(optimizer, options, self._schedule_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self) -> torch.optim.Optimizer:
        options, weights = self.options, self.method.network.parameters()
        if options.optimizer == "muon":
            if isinstance(self.method.network, FSDPModule):
                raise UserError("training.optimizer muon needs whole matrices, not their shards; take adam under FSDP")
            return Muon(weights, options.learning_rate, options.weight_decay, fused=not self._scaled)
        return torch.optim.AdamW(
            weights, options.learning_rate, weight_decay=options.weight_decay, fused=not self._scaled
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cs_models"] = self.method.header()
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["schedule_steps"] = self._schedule_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        self._resumed_schedule_steps = checkpoint.get("schedule_steps")
        theirs, ours = (json.loads(json.dumps(header)) for header in (checkpoint["cs_models"], self.method.header()))
        self._resumed_training = theirs["training"]
        if theirs["model"] != self.method.name:
            raise UserError(f"the checkpoint holds the network {theirs['model']}, this run trains {self.method.name}")
        for key in ours["network"].keys() - self.method.without_effect:
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
            # A checkpoint of before there was a choice made the one that is now the default.
            before = self._resumed_training.get(key, getattr(Training, key))
            now = json.loads(json.dumps(getattr(self.options, key)))
            if before != now:
                raise UserError(
                    f"the checkpoint was trained with {key} = {before}, which holds until its end, this run asks for "
                    f"{now}; to change it, start from its weights with --model.init_args.training.start_from FILE"
                )
        planned, kind = self._resumed_schedule_steps, self.options.schedule
        if kind in ("one_cycle", "cosine") and planned not in (None, self._schedule_steps):
            raise UserError(
                f"the {kind} schedule of the checkpoint ends at step {planned}, that of this run at step "
                f"{self._schedule_steps}; go on with --trainer.max_steps {planned}, or start from its weights with "
                "--model.init_args.training.start_from FILE"
            )


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
