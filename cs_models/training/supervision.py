"""Training without ground truth: losses of a network f that see measurements y and their operator A, and no image.

Every loss is a function of the same arguments, an entry of `LOSSES`. What a step chooses for all images at once (rows,
turns) comes from a generator that is the same in all processes; noise and probes come from one of the process's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators.bank import mix
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.training.module import ReconstructionModule
from cs_models.training.options import Training

Estimator = Callable[[Tensor, MeasurementOperator], Tensor]
"""Maps measurements ``(N, 1, ...)`` and their operator to images ``(N, 1, H, W)`` in float32."""

# Of (seed, step, stream); the bank draws operators without one, networks draw schedules from 1.
_STREAM = 2
# Standard deviation of the probe of a divergence, for images in [0, 1]: bfloat16 still sees it, curvature does not.
PROBE = 0.01
# Of a mean error whose root still has a gradient.
SMALLEST_ERROR = 1e-12


def unsupervised_loss(
    method: ReconstructionModule,
    y: Tensor,
    operator: MeasurementOperator,
    step: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss that `training.supervision` names, of a batch of measurements ``(N, 1, ...)``.

    Args:
        method: what is trained.
        y: measurements.
        operator: what measured them, with rows of the form that the method is made for.
        step: number of the training step.
        generator: random state of this batch in this process, on the CPU; torch's own where it is not given.
    """

    def estimate(y: Tensor, operator: MeasurementOperator) -> Tensor:
        return method.training_estimate(y, operator, step).float()

    options = method.training_options
    return loss_without_truth(options.supervision, options, estimate, y, operator, step, generator)


def loss_without_truth(
    kind: str,
    options: Training,
    estimate: Estimator,
    y: Tensor,
    operator: MeasurementOperator,
    step: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A loss of `LOSSES` by its name, with the weight and the seed of a training's options."""
    shared = torch.Generator().manual_seed(mix(options.sampling.seed, step, _STREAM))
    return LOSSES[kind](estimate, y, operator, options, shared, generator)


def splitting_loss(
    estimate: Estimator,
    y: Tensor,
    operator: MeasurementOperator,
    options: Training,
    shared: torch.Generator,
    own: torch.Generator | None = None,
) -> Tensor:
    """Measurement splitting alone: ``sqrt(mean |A_2 x_1 - y_2| mean |A_1 x_2 - y_1|)`` with x_i, A_i of `_Split`.

    The geometric mean counts a relative change of both errors alike. In the sum of `measurements_loss` an estimate
    from nearly all rows hardly counts, since it is held against the few others.

    Raises:
        UserError: if A has no rows that could be split.
    """
    split = _Split(estimate, y, operator, shared)
    return torch.stack([error.mean().clamp_min(SMALLEST_ERROR) for error in split.errors]).prod().sqrt()


def measurements_loss(
    estimate: Estimator,
    y: Tensor,
    operator: MeasurementOperator,
    options: Training,
    shared: torch.Generator,
    own: torch.Generator | None = None,
) -> Tensor:
    """Splitting and cycle consistency: ``(|A_2 x_1 - y_2|_1 + |A_1 x_2 - y_1|_1) / M + w (C(x_1) + C(x_2))``.

    x_i and A_i are those of `_Split`, C is `cycle_loss`, w is `training.cycle_weight`.

    Chen, Zhang, Liu, Zhang, Zhang, "Self-Supervised Scalable Deep Compressed Sensing" (SCNet), IJCV 2024. There, every
    image of a batch has its own rows; here all images of a step share them, as they share A.

    Raises:
        UserError: if A has no rows that could be split.
    """
    split = _Split(estimate, y, operator, shared)
    loss = torch.stack([error.sum() for error in split.errors]).sum() / y.numel()
    weight = options.cycle_weight
    if weight:
        loss = loss + weight * sum(cycle_loss(estimate, x, split.operator, shared) for x in split.images)
    return loss


class _Split:
    """What one part of the measurements says is predicted from the other.

    The M rows of A fall at random into two parts, the first of q rows with q uniform in 1..M-1; all images share them.

    Attributes:
        operator: A.
        images: ``x_i = f(y_i, A_i)`` of both parts, each ``(N, 1, H, W)``.
        errors: ``|A_2 x_1 - y_2|`` and ``|A_1 x_2 - y_1|`` of each measurement.
    """

    def __init__(self, estimate: Estimator, y: Tensor, operator: MeasurementOperator, shared: torch.Generator) -> None:
        self.operator = matrix = _splittable(operator)
        order = torch.randperm(len(matrix.matrix), generator=shared)
        first = int(torch.randint(1, len(order), (), generator=shared))
        parts = [(y[..., rows.to(y.device)], _rows(matrix, rows)) for rows in (order[:first], order[first:])]
        self.images = [estimate(*part) for part in parts]
        others = zip(self.images, reversed(parts), strict=True)
        self.errors = [(other(x) - other_y).abs() for x, (other_y, other) in others]


def cycle_loss(estimate: Estimator, x: Tensor, operator: MatrixOperator, shared: torch.Generator) -> Tensor:
    """SCNet's cycle consistency: ``mean |f(B t, B) - t|`` for t = T x, an estimate turned by one of 8 isometries.

    B consists of random rows of A, their number uniform in 1..M. SCNet takes them from a whole square matrix, of which
    a device has the first M rows only.

    Args:
        estimate: f.
        x: estimates ``(N, 1, H, W)``.
        operator: A.
        shared: random state of the turn and the rows.
    """
    turned = _turned(x, shared)
    rows = len(operator.matrix)
    count = int(torch.randint(1, rows + 1, (), generator=shared))
    part = _rows(operator, torch.randperm(rows, generator=shared)[:count])
    return (estimate(part(turned), part) - turned).abs().mean()


def equivariant_loss(
    estimate: Estimator,
    y: Tensor,
    operator: MeasurementOperator,
    options: Training,
    shared: torch.Generator,
    own: torch.Generator | None = None,
) -> Tensor:
    """Equivariant imaging: ``mean (A x_1 - y)^2 + w E(x_1)`` with ``x_1 = f(y, A)`` and E as in `equivariance`.

    w is `training.equivariance_weight`.

    Chen, Tachella, Davies, "Equivariant Imaging: Learning Beyond the Range Space", ICCV 2021.
    """
    x = estimate(y, operator)
    consistency = (operator(x) - y).abs().square().mean()
    weight = options.equivariance_weight
    return consistency + weight * equivariance(estimate, x, operator, shared, own) if weight else consistency


def equivariance(
    estimate: Estimator,
    x: Tensor,
    operator: MeasurementOperator,
    shared: torch.Generator,
    own: torch.Generator | None = None,
) -> Tensor:
    """``E(x) = mean (f(A T x + n, A) - T x)^2``: photographs remain photographs when they are turned and shifted.

    T is one of 8 flips and rotations, then a cyclic shift by any number of rows and columns; n is new noise of the
    level of A. One A seen from all places and turns is as good as many operators, which is what lets f learn what A
    alone does not see.

    Args:
        estimate: f.
        x: estimates ``(N, 1, H, W)``.
        operator: A.
        shared: random state of T.
        own: random state of n.
    """
    shift = [int(torch.randint(side, (), generator=shared)) for side in x.shape[-2:]]
    moved = _turned(x, shared).roll(shift, (-2, -1))
    return (estimate(operator.measure(moved, own), operator) - moved).square().mean()


def sure_loss(
    estimate: Estimator,
    y: Tensor,
    operator: MeasurementOperator,
    options: Training,
    shared: torch.Generator,
    own: torch.Generator | None = None,
) -> Tensor:
    """Stein's unbiased risk estimate of `sure`, plus w times `equivariance` for what A does not see.

    With w > 0 it is robust equivariant imaging: Chen, Tachella, Davies, CVPR 2022.

    Raises:
        UserError: if the noise is unknown or there is none.
    """
    if not operator.noise_sigma > 0:
        raise UserError(
            "supervision sure needs noise of a known standard deviation: give sampling.noise_sigma, 'noise' of the set "
            "of measurements, or --noise; without noise, take measurements or equivariant"
        )
    x = estimate(y, operator)
    risk = sure(estimate, x, y, operator, own)
    weight = options.equivariance_weight
    return risk + weight * equivariance(estimate, x, operator, shared, own) if weight else risk


def sure(
    estimate: Estimator, x: Tensor, y: Tensor, operator: MeasurementOperator, own: torch.Generator | None = None
) -> Tensor:
    """An unbiased estimate of ``mean (A f(y) - A x_true)^2`` for ``y = A x_true + n``, n white and Gaussian of sigma.

    ``mean |A f(y) - y|^2 - sigma^2 + 2 sigma^2 / m div_y A f(y)``, m being the number of measurements (Stein, Annals of
    Statistics 1981), with the divergence ``b^T (A f(y + tau b) - A f(y)) / tau`` for one white Gaussian b (Ramani, Blu,
    Unser, IEEE TIP 2008). It can be negative. The error in the null space of A is not part of it.

    Args:
        estimate: f.
        x: ``f(y)``.
        y: measurements; of complex ones sigma is that of real and imaginary part together.
        operator: A; its `noise_sigma` is sigma.
        own: random state of b.
    """
    measured = operator(x)
    probe = torch.randn(y.shape, generator=own, dtype=y.dtype).to(y.device, non_blocking=True)
    moved = operator(estimate(y + PROBE * probe, operator)) - measured
    divergence = (probe.conj() * moved).real.mean() / PROBE
    variance = operator.noise_sigma**2
    return (measured - y).abs().square().mean() - variance + 2 * variance * divergence


def _splittable(operator: MeasurementOperator) -> MatrixOperator:
    if not isinstance(operator, MatrixOperator):
        raise UserError(
            f"splitting takes the rows of a matrix apart, and {operator.spec['kind']} has none; "
            "take equivariant or sure"
        )
    if len(operator.matrix) < 2:
        raise UserError("splitting takes the rows of a matrix apart, and this one has 1 row")
    return operator


def _rows(operator: MatrixOperator, rows: Tensor) -> MatrixOperator:
    """The operator of some of the measurements of each signal."""
    matrix = operator.matrix[rows.to(operator.matrix.device)]
    return operator.with_matrix(matrix, len(rows) / matrix.shape[1], operator.noise_sigma)


def _turned(x: Tensor, shared: torch.Generator) -> Tensor:
    """Images under one of the 8 flips and rotations, which are equally likely; of the 4 that keep their size."""
    upside_down, mirrored, transposed = torch.randint(2, (3,), generator=shared).tolist()
    x = x.flip(-2) if upside_down else x
    x = x.flip(-1) if mirrored else x
    return x.transpose(-2, -1) if transposed and x.shape[-2] == x.shape[-1] else x


LOSSES: dict[str, Callable[..., Tensor]] = {
    "splitting": splitting_loss,
    "measurements": measurements_loss,
    "equivariant": equivariant_loss,
    "sure": sure_loss,
}
"""Of each kind of supervision its loss."""
