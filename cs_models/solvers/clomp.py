"""Coefficients learning: sparse reconstruction as the training of an ultra-small model, one for each image.

Tang et al., "Training-free Ultra Small Model for Universal Sparse Reconstruction in Compressed Sensing", 2025
(arXiv:2501.11592). The model has two branches. The *s-forward branch* holds the trainable parameters and gives the
coefficients s. The *residual-injection branch* holds none: from ``A^T r``, r being the residual of the last epoch,
it computes how much of each coefficient counts, as a classic method would. Their product is measured,
``A (weight * s)``, and Adam lessens

    mean((y - A (weight * s))^2) + w_tv TV(D s) + w_lv LV(D s) + w_prior prior(D s).

The result is the image ``D s``, without the weight. With OMP's injection this is CLOMP, the paper's algorithm. Without
an injection and from a smooth start it is another method, `WarmCLOMP`, which is better on images.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.numerics import all_settled
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver
from cs_models.solvers.clomp_branches import (
    CoefficientNetwork,
    CoefficientParameters,
    DataTerm,
    Injection,
    IterateTerm,
    MeasurementTerm,
    WeightedCoefficients,
    iht_injection,
    irls_injection,
    ista_injection,
    no_injection,
    omp_injection,
)
from cs_models.solvers.priors import SMALLEST_WINDOW, differentiated, local_variation, total_variation
from cs_models.solvers.sparse_problem import SparseProblem, sparse_problem, sparsity_of
from cs_models.solvers.tikhonov import smooth_image


@dataclass(frozen=True)
class Recipe:
    """The settings of an image's training; those that the user leaves open come from one of the recipes below.

    Attributes: as those of `CoefficientsLearning`, and:
        moving_windows: the windows of LV, 2 pixels apart, move by a pixel from epoch to epoch, so that four epochs
            see every window of the image.
        rescale: coefficients are divided by the norms of their atoms where they become an image.
    """

    start: Literal["random", "smooth"]
    injection: Literal["none", "omp", "iht", "ista", "irls"]
    w_tv: float
    w_lv: float
    learning_rate: float
    final_learning_rate: float
    decay_epochs: int
    epochs: int
    tolerance: float
    change_tolerance: float
    moving_windows: bool = False
    rescale: bool = True


# The torch code released with the paper, for images and for 1-D signals. The paper calls its weights empirical.
RELEASED = Recipe("random", "omp", 0.2, 0.1, 2.0, 0.1, 100, 150, 1e-4, 1e-7, rescale=False)
RELEASED_1D = Recipe("random", "omp", 0.5, 0.0, 2.0, 0.01, 100, 200, 1e-5, 0.0, rescale=False)


def corrected_recipe(ratio: float) -> Recipe:
    """The paper's algorithm without the released code's defect, with weights that depend on the sampling ratio.

    From random coefficients the injection and strong priors must find the image; the fewer measurements there are,
    the stronger. Only a small loss ends an image early, as in the code of the paper's figures: at these learning rates
    a loss can be the same in two epochs by chance, long before it has settled.
    """
    return Recipe("random", "omp", 0.02 / ratio**2, 0.05 / ratio, 2.0, 0.001, 150, 150, 1e-4, 0.0)


def warm_recipe(ratio: float) -> Recipe:
    """A smooth start, after which selecting coefficients only hurts; LV alone sharpens it.

    The weight was chosen on Train400 and T91; see docs/solvers.md.
    """
    return Recipe("smooth", "none", 0.0, 0.01 / ratio, 0.03, 0.001, 200, 200, 0.0, 0.0, moving_windows=True)


INJECTIONS = ("none", "omp", "iht", "ista", "irls")
FIRST_EPOCH_TO_STOP = 80
SMOOTH_WEIGHT, SMOOTH_ITERATIONS = 1e-3, 40


@dataclass(kw_only=True)
class CoefficientsLearning(IterativeSolver):
    """Learns an image's coefficients; see the module's description. Settings that are None come from a recipe.

    Attributes:
        injection: residual-injection branch, "omp", "iht", "ista", "irls" or "none" (all coefficients count).
        mask: how the injection "omp" compares correlations, by their "maximum" or by "softmax".
        threshold: share of the largest correlation ("omp": 0.7) or coefficient ("ista", "irls": 0.01).
        sparsity: K of the injection "iht"; None: a quarter of the measurements.
        start: first coefficients, "random" or "smooth" (`smooth_image`).
        w_tv: weight of the squared total variation.
        w_lv: weight of the local variation.
        prior: a prior of one's own, differentiable, from images ``(N, C, H, W)`` to values ``(N,)``.
        w_prior: its weight.
        learning_rate: of Adam at first; it falls linearly.
        final_learning_rate: its least value.
        decay_epochs: epochs in which the learning rate would reach 0.
        epochs: the most epochs.
        tolerance: an image stops, after 80 epochs, where its loss is below this.
        change_tolerance: or where its loss changed by less than this since the last epoch.
        seed: of the random start.
    """

    injection: Literal["none", "omp", "iht", "ista", "irls"] | None = None
    mask: Literal["maximum", "softmax"] = "maximum"
    threshold: float | None = None
    sparsity: int | None = None
    start: Literal["random", "smooth"] | None = None
    w_tv: float | None = None
    w_lv: float | None = None
    prior: Callable[[Tensor], Tensor] | None = None
    w_prior: float = 1.0
    learning_rate: float | None = None
    final_learning_rate: float | None = None
    decay_epochs: int | None = None
    epochs: int | None = None
    tolerance: float | None = None
    change_tolerance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.injection in (None, *INJECTIONS), "injection", "one of " + ", ".join(INJECTIONS))
        self._require(self.mask in ("maximum", "softmax"), "mask", "maximum or softmax")
        self._require(self.start in (None, "random", "smooth"), "start", "random or smooth")
        self._require(self.threshold is None or 0 < self.threshold <= 1, "threshold", "a share in (0, 1]")
        self._require(self.learning_rate is None or 0 < self.learning_rate <= 1e6, "learning_rate", "more than 0")
        self._require(self.epochs is None or self.epochs >= 1, "epochs", "at least 1")
        self._require(self.decay_epochs is None or self.decay_epochs >= 1, "decay_epochs", "at least 1")

    @abstractmethod
    def usual_recipe(self, operator: MeasurementOperator) -> Recipe:
        """The settings for an operator where the user gives none."""

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        recipe = self.training_recipe(operator)
        problem = sparse_problem(y, operator, recipe.rescale)
        # The coefficients are in units of the image, so that weights and rates mean the same for every operator.
        unit = problem.scale if recipe.rescale else 1.0
        data = problem.y / unit
        branch = self._s_forward(problem, recipe, unit, y, operator)
        data_term = self._data_term(problem, data, self._residual_injection(problem, recipe))
        optimizer = torch.optim.Adam(branch.parameters(), lr=recipe.learning_rate, fused=True)

        planes, signals = problem.planes, len(data) // problem.planes
        finished = problem.zeros()
        # Measurements that are all zero say that the image is, unless the user's own prior knows better.
        active = (reduce(data.abs(), "(p l) m -> p", "max", p=planes) > 0) | (self.prior is not None)
        epochs = torch.zeros(planes, dtype=torch.long, device=y.device)
        losses: list[Tensor] = []
        with self.run(recipe.epochs) as run:
            for epoch in range(recipe.epochs):
                if not run.step():
                    break
                with torch.enable_grad():  # a caller may be in no_grad
                    branch_output = branch()
                s = branch_output.detach()
                epochs += active

                data_loss, gradient = data_term(s)
                prior_loss, image_gradient = self._priors(problem.image(s) * unit, recipe, epoch)
                gradient.add_(problem.image_adjoint(image_gradient), alpha=unit)
                losses.append(data_loss + prior_loss.flatten())

                if epoch > FIRST_EPOCH_TO_STOP:
                    settled = active & self._settled(losses, recipe)
                    finished = torch.where(settled.repeat_interleave(signals)[:, None], s, finished)
                    active = active & ~settled
                if epoch + 1 == recipe.epochs or all_settled(active, epoch):
                    break
                for group in optimizer.param_groups:
                    rate = recipe.learning_rate * (1 - epoch / recipe.decay_epochs)
                    group["lr"] = max(recipe.final_learning_rate, rate)
                optimizer.zero_grad()
                branch_output.backward(gradient)
                optimizer.step()
        unfinished = active.repeat_interleave(signals)
        s = torch.where(unfinished[:, None], branch().detach(), finished)
        return problem.solution(s * unit, epochs.repeat_interleave(signals), ~unfinished)

    def training_recipe(self, operator: MeasurementOperator) -> Recipe:
        """The settings for an operator, those of the user first."""
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)}
        given = {name: getattr(self, name) for name in names}
        return replace(
            self.usual_recipe(operator), **{name: value for name, value in given.items() if value is not None}
        )

    def _s_forward(
        self, problem: SparseProblem, recipe: Recipe, unit: float, y: Tensor, operator: MeasurementOperator
    ) -> nn.Module:
        if recipe.start == "smooth":
            planes = rearrange(y, "n c ... -> (n c) 1 ...")
            image = smooth_image(planes, operator, SMOOTH_WEIGHT * problem.scale**2, SMOOTH_ITERATIONS)
            return CoefficientParameters(problem.coefficients(image) / unit)
        signals = len(problem.y) // problem.planes
        bound = math.sqrt(6 / (signals + problem.n))
        s = torch.empty(signals, problem.n).uniform_(-bound, bound, generator=self._generator())
        return CoefficientParameters(s.to(problem.zeros(), non_blocking=True).repeat(problem.planes, 1))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _data_term(self, problem: SparseProblem, data: Tensor, inject: Injection) -> DataTerm:
        return MeasurementTerm(problem, data, inject)

    def _residual_injection(self, problem: SparseProblem, recipe: Recipe) -> Injection:
        if recipe.injection == "omp":
            return omp_injection(0.7 if self.threshold is None else self.threshold, self.mask)
        if recipe.injection == "iht":
            return iht_injection(sparsity_of(self.sparsity, 0.25, problem.m, problem.n))
        if recipe.injection == "none":
            return no_injection
        shrink = ista_injection if recipe.injection == "ista" else irls_injection
        return shrink(0.01 if self.threshold is None else self.threshold)

    def _priors(self, x: Tensor, recipe: Recipe, epoch: int) -> tuple[Tensor, Tensor]:
        """Weighted priors of images ``(N, C, H, W)``: values ``(N, C)``, and the gradient of their sum."""
        value, gradient = x.new_zeros(x.shape[:2]), torch.zeros_like(x)
        if recipe.w_tv:
            variation, slope = total_variation(x)
            value, gradient = value + recipe.w_tv * variation, gradient.add_(slope, alpha=recipe.w_tv)
        if recipe.w_lv:
            top, left = (epoch % 2, epoch // 2 % 2) if recipe.moving_windows else (0, 0)
            variation, slope = local_variation(x[..., top:, left:])
            value = value + recipe.w_lv * variation
            gradient[..., top:, left:].add_(slope, alpha=recipe.w_lv)
        if self.prior is not None:
            own, slope = differentiated(self.prior)(x)
            value, gradient = value + self.w_prior * own, gradient.add_(slope, alpha=self.w_prior)
        return value, gradient

    def _settled(self, losses: list[Tensor], recipe: Recipe) -> Tensor:
        """Which planes may stop, ``(P,)``."""
        loss = losses[-1]
        # Moving windows come back after four epochs; only losses of the same windows compare.
        before = losses[-5 if recipe.moving_windows else -2]
        return (loss < recipe.tolerance) | ((loss - before).abs() < recipe.change_tolerance)


@dataclass(kw_only=True)
class CLOMP(CoefficientsLearning):
    """The paper's algorithm: random coefficients, OMP's selection in the residual-injection branch, TV and LV.

    Attributes: those of `CoefficientsLearning`, and:
        recipe: "corrected" (`corrected_recipe`), or "released": as the torch code released with the paper, with its
            weights and its defect: the image is made from coefficients that are not divided by the norms of their
            atoms.
        structure: s-forward branch of the paper; 1: the coefficients are the parameters; 2: a small network from y,
            which starts random.
        neurons: hidden neurons of structure 2.
        learned_weight: the coefficients of structure 1 are products of two factors, both learned: the paper's W.
        form: what is compared, "measurements", y with ``A (weight * s)``; or "iterates", s with what a classic method
            makes of it (`IterateTerm`).
    """

    recipe: Literal["corrected", "released"] = "corrected"
    structure: Literal[1, 2] = 1
    neurons: int = 128
    learned_weight: bool = False
    form: Literal["measurements", "iterates"] = "measurements"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.recipe in ("corrected", "released"), "recipe", "corrected or released")
        self._require(self.structure in (1, 2), "structure", "1 or 2")
        self._require(1 <= self.neurons <= 2**16, "neurons", "1 to 65,536")
        self._require(not self.learned_weight or self.structure == 1, "structure", "1 with learned_weight")
        self._require(self.form in ("measurements", "iterates"), "form", "measurements or iterates")

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        return (y, operator) if self.recipe == "released" else super().prepared(y, operator)

    def usual_recipe(self, operator: MeasurementOperator) -> Recipe:
        if self.recipe == "released":
            recipe = RELEASED_1D if operator.image_size[1] == 1 else RELEASED
        else:
            recipe = corrected_recipe(operator.ratio)
        return replace(recipe, learning_rate=0.01, final_learning_rate=0.001) if self.structure == 2 else recipe

    def _s_forward(
        self, problem: SparseProblem, recipe: Recipe, unit: float, y: Tensor, operator: MeasurementOperator
    ) -> nn.Module:
        if self.structure == 2:
            return CoefficientNetwork(problem, self.neurons, self._generator())
        branch = super()._s_forward(problem, recipe, unit, y, operator)
        return WeightedCoefficients(branch().detach()) if self.learned_weight else branch

    def _data_term(self, problem: SparseProblem, data: Tensor, inject: Injection) -> DataTerm:
        return (IterateTerm if self.form == "iterates" else MeasurementTerm)(problem, data, inject)


@dataclass(kw_only=True)
class WarmCLOMP(CoefficientsLearning):
    """Coefficients learning from a smooth image, without an injection (`warm_recipe`): better than CLOMP on images.

    The settings are those of `CoefficientsLearning`.
    """

    def usual_recipe(self, operator: MeasurementOperator) -> Recipe:
        return warm_recipe(operator.ratio)

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        if min(operator.image_size) < SMALLEST_WINDOW and self.prior is None and not (self.w_tv or self.w_lv == 0):
            height, width = operator.image_size
            raise UserError(
                f"WarmCLOMP: the local variation needs images of at least {SMALLEST_WINDOW}x{SMALLEST_WINDOW} pixels, "
                f"and this one is {height}x{width}; use clomp, which also takes 1-D signals, or give w_tv"
            )
        return super()._solve(y, operator)
