"""Coefficients learning: sparse reconstruction as the training of an ultra-small model, one for each image.

Tang et al., "Training-free Ultra Small Model for Universal Sparse Reconstruction in Compressed Sensing", 2025
(arXiv:2501.11592). The model has two branches. The *s-forward branch* holds the trainable parameters and gives the
coefficients s. The *residual-injection branch* holds none: from ``A^T r``, r being the residual of the last epoch,
it computes how much of each coefficient counts, as a classic method would. Their product is measured,
``A (weight * s)``, and Adam lessens

    mean((y - A (weight * s))^2) + w_tv TV(D s) + w_lv LV(D s) + w_prior prior(D s).

The result is the image ``D s``, without the weight. With OMP's injection this is CLOMP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from cs_models.numerics import all_settled
from cs_models.operators.base import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import IterativeSolver
from cs_models.solvers.priors import differentiated, local_variation, total_variation
from cs_models.solvers.sparse_problem import SparseProblem, largest_mask, sparse_problem, sparsity_of
from cs_models.solvers.tikhonov import smooth_image


class CoefficientParameters(nn.Module):
    """The paper's structure 1, and CLOMP's: the coefficients are the parameters."""

    def __init__(self, s: Tensor) -> None:
        super().__init__()
        self.s = nn.Parameter(s)

    def forward(self) -> Tensor:
        return self.s


class CoefficientNetwork(nn.Module):
    """The paper's structure 2: a small network from the measurements of a signal to its coefficients.

    Every plane of the batch has a network of its own, which its signals share; all start from the same weights.
    """

    def __init__(self, problem: SparseProblem, neurons: int, generator: torch.Generator) -> None:
        super().__init__()
        y = torch.view_as_real(problem.y).flatten(-2) if problem.y.is_complex() else problem.y
        self._y = rearrange(y, "(p l) m -> p l m", p=problem.planes)
        inputs, outputs = y.shape[1], problem.n

        def uniform(fan_in: int, rows: int, columns: int) -> nn.Parameter:
            values = torch.empty(1, rows, columns).uniform_(-1, 1, generator=generator) / math.sqrt(fan_in)
            return nn.Parameter(values.to(y).repeat(problem.planes, 1, 1))

        self.weight_1, self.bias_1 = uniform(inputs, inputs, neurons), uniform(inputs, 1, neurons)
        self.weight_2, self.bias_2 = uniform(neurons, neurons, outputs), uniform(neurons, 1, outputs)

    def forward(self) -> Tensor:
        hidden = torch.relu(torch.baddbmm(self.bias_1, self._y, self.weight_1))
        return rearrange(torch.baddbmm(self.bias_2, hidden, self.weight_2), "p l n -> (p l) n")


Injection = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Residual-injection branch: from ``A^T r``, s and the last weight (0 at first), all ``(P, n)``, to the new weight."""


def no_injection(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
    """All coefficients count."""
    return torch.ones_like(s)


def omp_injection(threshold: float, mask: Literal["maximum", "softmax"]) -> Injection:
    """OMP's selection: coefficients whose correlation with the residual is near the largest are in from then on.

    Args:
        threshold: of the correlation, or with "softmax" of its softmax, as a share of the largest.
        mask: "maximum" or "softmax".
    """

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        strength = correlation.abs()
        largest = strength.amax(1, keepdim=True)
        bound = threshold * largest if mask == "maximum" else largest + math.log(threshold)
        # A signal without residual selects nothing.
        chosen = strength > bound.clamp_min(1e-6)
        return torch.maximum(previous, chosen.to(previous.dtype))

    return weight


def iht_injection(count: int) -> Injection:
    """IHT's selection: the `count` coefficients that are largest after a gradient step."""

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        return largest_mask(s + correlation, count).to(s.dtype)

    return weight


def ista_injection(threshold: float) -> Injection:
    """ISTA's shrinkage as a factor, ``1 - t / |u|`` (at least 0) of ``u = s + A^T r`` with t a share of the largest."""

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        magnitude = (s + correlation).abs()
        bound = threshold * magnitude.amax(1, keepdim=True)
        return (1 - bound / magnitude.clamp_min(torch.finfo(s.dtype).tiny)).clamp_min(0)

    return weight


def irls_injection(threshold: float) -> Injection:
    """IRLS's reweighting as a factor, ``u^2 / (u^2 + t^2)`` of ``u = s + A^T r`` with t a share of the largest."""

    def weight(correlation: Tensor, s: Tensor, previous: Tensor) -> Tensor:
        squared = (s + correlation).square()
        bound = threshold**2 * squared.amax(1, keepdim=True)
        return squared / (squared + bound).clamp_min(torch.finfo(s.dtype).tiny)

    return weight


@dataclass(frozen=True)
class Recipe:
    """The settings of an image's training; those that the user leaves open come from one of the recipes below.

    Attributes: as those of `CLOMP`, and:
        moving_windows: the windows of LV, 2 pixels apart, move by a pixel from epoch to epoch, so that four epochs
            see every window of the image.
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


# The torch code released with the paper, for images and for 1-D signals.
RELEASED = Recipe("random", "omp", 0.2, 0.1, 2.0, 0.1, 100, 150, 1e-4, 1e-7)
RELEASED_1D = Recipe("random", "omp", 0.5, 0.0, 2.0, 0.01, 100, 200, 1e-5, 0.0)


def cold_recipe(ratio: float) -> Recipe:
    """Random coefficients, so that the injection and strong priors must find the image; weights depend on the ratio."""
    return Recipe("random", "omp", 0.02 / ratio**2, 0.05 / ratio, 2.0, 0.001, 150, 150, 1e-4, 1e-7)


def warm_recipe(ratio: float) -> Recipe:
    """A smooth start, after which selecting coefficients only hurts; LV alone sharpens it.

    The weight was chosen on Train400 and T91; see docs/solvers.md.
    """
    return Recipe("smooth", "none", 0.0, 0.01 / ratio, 0.03, 0.001, 200, 200, 0.0, 0.0, moving_windows=True)


INJECTIONS = ("none", "omp", "iht", "ista", "irls")
FIRST_EPOCH_TO_STOP = 80
SMOOTH_WEIGHT, SMOOTH_ITERATIONS = 1e-3, 40


@dataclass(kw_only=True)
class CLOMP(IterativeSolver):
    """Coefficients learning; see the module's description.

    Settings that are None come from a recipe: `RELEASED` where `released` is set; `cold_recipe` for 1-D signals,
    for a random start, for structure 2 and for an injection; else `warm_recipe`.

    Attributes:
        released: as the torch code released with the paper, with its defect: the image is made from coefficients
            that are not divided by the norms of their atoms.
        structure: s-forward branch of the paper; 1: the coefficients are the parameters; 2: a small network from y.
        neurons: hidden neurons of structure 2.
        injection: residual-injection branch, "omp", "iht", "ista", "irls" or "none" (all coefficients count).
        mask: how the injection "omp" compares correlations, by their "maximum" or by "softmax".
        threshold: share of the largest correlation ("omp": 0.7) or coefficient ("ista", "irls": 0.01).
        sparsity: K of the injection "iht"; None: a quarter of the measurements.
        start: first coefficients, "random" or "smooth" (`smooth_image`); the network of structure 2 starts random.
        w_tv: weight of the squared total variation.
        w_lv: weight of the local variation.
        prior: a prior of one's own, differentiable, from images ``(N, C, H, W)`` to values ``(N,)``.
        w_prior: its weight.
        learning_rate: of Adam at first; it falls linearly.
        final_learning_rate: its least value.
        decay_epochs: epochs in which the learning rate would reach 0.
        epochs: the most epochs.
        tolerance: an image stops, after 80 epochs, where its loss is below this.
        change_tolerance: or where its loss changed by less than this.
        seed: of the random start.
    """

    released: bool = False
    structure: Literal[1, 2] = 1
    neurons: int = 128
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
        self._require(self.structure in (1, 2), "structure", "1 or 2")
        self._require(self.injection in (None, *INJECTIONS), "injection", "one of " + ", ".join(INJECTIONS))
        self._require(self.mask in ("maximum", "softmax"), "mask", "maximum or softmax")
        self._require(self.start in (None, "random", "smooth"), "start", "random or smooth")
        self._require(self.threshold is None or 0 < self.threshold <= 1, "threshold", "a share in (0, 1]")
        self._require(1 <= self.neurons <= 2**16, "neurons", "1 to 65,536")
        self._require(self.learning_rate is None or 0 < self.learning_rate <= 1e6, "learning_rate", "more than 0")
        self._require(self.epochs is None or self.epochs >= 1, "epochs", "at least 1")
        self._require(self.decay_epochs is None or self.decay_epochs >= 1, "decay_epochs", "at least 1")

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        return (y, operator) if self.released else super().prepared(y, operator)

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        problem = sparse_problem(y, operator, rescale=not self.released)
        recipe = self.recipe(operator)
        # The coefficients are in units of the image, so that weights and rates mean the same for every operator.
        unit = 1.0 if self.released else problem.scale
        data = problem.y / unit
        branch = self._s_forward(problem, recipe, unit, y, operator)
        inject = self._residual_injection(problem, recipe)
        optimizer = torch.optim.Adam(branch.parameters(), lr=recipe.learning_rate, fused=True)

        planes, signals = problem.planes, len(data) // problem.planes
        finished, weight, correlation = problem.zeros(), problem.zeros(), problem.adjoint(data)
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

                weight = inject(correlation, s, weight)
                residual = data - problem.forward(s * weight)
                # The correlation serves twice: for the gradient, and for the injection of the next epoch.
                correlation = problem.adjoint(residual)
                prior_loss, image_gradient = self._priors(problem.image(s) * unit, recipe, epoch)
                gradient = problem.image_adjoint(image_gradient) * unit
                gradient.addcmul_(correlation, weight, value=-2 / (signals * problem.m))
                losses.append(reduce(residual.abs().square(), "(p l) m -> p", "mean", p=planes) + prior_loss.flatten())

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

    def recipe(self, operator: MeasurementOperator) -> Recipe:
        """The settings for an operator, those of the user first."""
        one_dimensional = operator.image_size[1] == 1
        cold = self.structure == 2 or self.start == "random" or self.injection not in (None, "none")
        if self.released:
            recipe = RELEASED_1D if one_dimensional else RELEASED
        else:
            recipe = cold_recipe(operator.ratio) if one_dimensional or cold else warm_recipe(operator.ratio)
        if self.structure == 2:
            recipe = replace(recipe, learning_rate=0.01, final_learning_rate=0.001)
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)}
        given = {name: getattr(self, name) for name in names}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})

    def _s_forward(
        self, problem: SparseProblem, recipe: Recipe, unit: float, y: Tensor, operator: MeasurementOperator
    ) -> nn.Module:
        generator = torch.Generator().manual_seed(self.seed)
        if self.structure == 2:
            return CoefficientNetwork(problem, self.neurons, generator)
        if recipe.start == "smooth":
            planes = rearrange(y, "n c ... -> (n c) 1 ...")
            image = smooth_image(planes, operator, SMOOTH_WEIGHT * problem.scale**2, SMOOTH_ITERATIONS)
            return CoefficientParameters(problem.coefficients(image) / unit)
        signals = len(problem.y) // problem.planes
        bound = math.sqrt(6 / (signals + problem.n))
        s = torch.empty(signals, problem.n).uniform_(-bound, bound, generator=generator)
        return CoefficientParameters(s.to(problem.zeros()).repeat(problem.planes, 1))

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
