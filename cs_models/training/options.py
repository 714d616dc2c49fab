"""How a network is trained: one section of the YAML serves every network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cs_models.errors import UserError
from cs_models.operators import Sampling
from cs_models.operators.matrices import check_ratio
from cs_models.settings import check_distinct, check_range

CompileMode = Literal["default", "reduce-overhead"]
# What an optimiser and its schedule take from a checkpoint.
OPTIMISER_SETTINGS = (
    "optimizer", "learning_rate", "schedule", "warmup_steps", "step_every", "milestones", "step_factor", "weight_decay",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        sampling: ratios and matrices.
        optimizer: "adam"; or "muon", which makes the steps of matrices and convolutions orthogonal (Jordan et al.,
            2024) and takes Adam for all else, under learning rates that are right for Adam (Liu et al., 2025).
        learning_rate: of the optimiser, the largest one of the schedule.
        schedule: "constant"; "one_cycle" or "cosine" over all optimiser steps, cosine after a linear warm-up;
            "step" multiplies by `step_factor` every `step_every` steps, or after the steps of `milestones`.
        warmup_steps: of "cosine".
        step_every: of "step".
        milestones: of "step": numbers of steps, in place of `step_every`.
        step_factor: of "step".
        weight_decay: decoupled (AdamW).
        ema_decay: decay of the exponential moving average of the weights, which validation and export then use;
            None for none.
        supervision: what the loss sees. "ground_truth": the images. Without them, for networks that take any operator:
            "splitting" of the measurements; "measurements", splitting and cycle consistency; "equivariant", equivariant
            imaging; "sure", Stein's estimate for noise of known level; see `cs_models.training.supervision`.
        cycle_weight: of cycle consistency beside splitting, in "measurements".
        equivariance_weight: of the turned and shifted images of "equivariant" and "sure"; 0 for the first term alone.
        log_loss: minimise the logarithm of each process's batch loss, which is also what is logged. A
            relative change of the error then counts the same at high ratios, where all errors are small, as at low
            ones; the logarithm of a squared error is the PSNR but for its scale.
        compile: run the network's layers through torch.compile; the first steps take longer.
        compile_mode: of torch.compile: "default", or "reduce-overhead", which on GPUs repeats recorded kernels (CUDA
            graphs), for small batches.
        cuda_graphs: record the kernels of a training step once for each ratio and let the GPU repeat them. For networks
            that take any operator, sampled by blocks without noise; it goes together with `compile`.
        non_finite: what to do if the loss of any process is not a finite number: "stop" with an error, or "skip" the
            optimiser's step in all processes and count it. "auto" skips under a gradient scaler (16-mixed), which is
            made for an overflow now and then, and stops in all other precisions.
        most_skips: so many skipped steps in a row stop the training.
        panel_images: how many validation images are shown to the logger.
        validation_ratios: CS ratios to validate at; None for those of `sampling`.
        start_from: a checkpoint of the same architecture whose weights training starts from.
    """

    sampling: Sampling = field(default_factory=Sampling)
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "one_cycle", "cosine", "step"] = "constant"
    warmup_steps: int = 0
    step_every: int = 10_000
    milestones: tuple[int, ...] = ()
    step_factor: float = 0.5
    weight_decay: float = 0.0
    ema_decay: float | None = None
    supervision: Literal["ground_truth", "splitting", "measurements", "equivariant", "sure"] = "ground_truth"
    cycle_weight: float = 0.1
    equivariance_weight: float = 1.0
    log_loss: bool = False
    compile: bool = False
    compile_mode: CompileMode = "default"
    cuda_graphs: bool = False
    non_finite: Literal["auto", "stop", "skip"] = "auto"
    most_skips: int = 100
    panel_images: int = 2
    validation_ratios: tuple[float, ...] | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        check_range("training.learning_rate", self.learning_rate, 0, 1e6)
        check_range("training.warmup_steps", self.warmup_steps, 0, 2**31)
        check_range("training.step_every", self.step_every, 1, 2**31)
        check_range("training.step_factor", self.step_factor, 0, 1)
        check_range("training.weight_decay", self.weight_decay, 0, 1e6)
        check_range("training.most_skips", self.most_skips, 1, 2**31)
        check_range("training.panel_images", self.panel_images, 0, 1000)
        if self.compile_mode != "default" and not self.compile:
            raise UserError(f"training.compile_mode {self.compile_mode} changes nothing without training.compile true")
        check_range("training.cycle_weight", self.cycle_weight, 0, 1e6)
        check_range("training.equivariance_weight", self.equivariance_weight, 0, 1e6)
        if self.supervision != "ground_truth":
            self._check_without_images()
        if self.cuda_graphs:
            self._check_same_steps()
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay must be in [0, 1), or null for none, got {self.ema_decay}")
        if any(step < 1 for step in self.milestones) or sorted(set(self.milestones)) != list(self.milestones):
            raise UserError(f"training.milestones must be steps above 0 in rising order, got {list(self.milestones)}")
        for ratio in self.validation_ratios or ():
            check_ratio(ratio)
        check_distinct("training.validation_ratios", self.validation_ratios or ())

    def _check_without_images(self) -> None:
        mode = f"training.supervision {self.supervision}"
        if self.sampling.matrices == "learned":
            raise UserError(f"{mode} has no images to learn sampling.matrices from; take gaussian or pca")
        if self.supervision in ("splitting", "measurements") and self.sampling.kind == "fourier":
            raise UserError(f"{mode} splits the rows of a matrix, and sampling.kind fourier has none; take equivariant")
        if self.supervision == "sure" and self.log_loss:
            raise UserError(f"{mode} may be negative, which has no logarithm; set training.log_loss false")

    def _check_same_steps(self) -> None:
        sampling = self.sampling
        if self.supervision != "ground_truth":
            raise UserError("training.cuda_graphs is for training.supervision ground_truth; set it false")
        if sampling.kind != "block" or sampling.noise_sigma > 0:
            raise UserError(
                "training.cuda_graphs repeats steps whose sampling differs by its matrix alone: sampling.kind block "
                "without noise_sigma; set it false for any other"
            )
        if self.compile_mode != "default":
            raise UserError("training.cuda_graphs and training.compile_mode reduce-overhead record twice; take one")
