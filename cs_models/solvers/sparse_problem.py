"""The sparse recovery problem ``y = A s`` behind a measurement: what A is for each operator, and how s is an image.

Where every block or column is measured by itself, each is one short signal, and all of them share one matrix of
atoms ``A = M D``, D being the DCT of the signal: 2-D inside a block, 1-D along a column. Other operators mix the
whole image; there the image is one long signal, D its 2-D DCT, and A is applied without a matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from einops import rearrange, reduce
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators.base import MatrixOperator, MeasurementOperator
from cs_models.operators.block import BlockOperator
from cs_models.operators.column import ColumnOperator
from cs_models.reconstruction import Solution
from cs_models.solvers.base import check_measurements, column_norm
from cs_models.solvers.noise import noise_energy
from cs_models.transforms.dct import DCT, DCT2d


class SparseProblem(ABC):
    """Find sparse s with ``y = A s``, for P signals at once.

    Attributes:
        y: measurements ``(P, m)``, the signals of one image one after the other; complex for Fourier sampling.
        n: coefficients of a signal.
        images: N, the number of images that the signals belong to.
        planes: N C, the number of their channels.
        scale: root mean square of the norms that the columns of A had before they were scaled to 1.
        noise_energy: expected ``|noise|^2`` on the measurements of a signal.
    """

    y: Tensor
    n: int
    images: int
    planes: int
    scale: float
    noise_energy: float

    @abstractmethod
    def forward(self, s: Tensor) -> Tensor:
        """``A s``: coefficients ``(P, n)`` to measurements ``(P, m)``."""

    @abstractmethod
    def adjoint(self, r: Tensor) -> Tensor:
        """``A^T r``: ``(P, m)`` to ``(P, n)``, real."""

    @abstractmethod
    def image(self, s: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` of coefficients ``(P, n)``."""

    @abstractmethod
    def image_adjoint(self, x: Tensor) -> Tensor:
        """Adjoint of `image`: a gradient on images ``(N, C, H, W)`` as one on coefficients ``(P, n)``."""

    @abstractmethod
    def coefficients(self, x: Tensor) -> Tensor:
        """The coefficients ``(P, n)`` whose image is x, ``(N, C, H, W)`` or ``(N C, 1, H, W)``."""

    @property
    def m(self) -> int:
        """Measurements of a signal."""
        return self.y.shape[-1]

    def zeros(self) -> Tensor:
        """Coefficients ``(P, n)``, all zero."""
        return torch.zeros(self.y.shape[0], self.n, dtype=self.y.real.dtype, device=self.y.device)

    def squared_norm(self, iterations: int = 30) -> float:
        """``|A|^2``, the largest eigenvalue of ``A^T A``, by the power method; it approaches from below."""
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.n, generator=generator).to(self.zeros(), non_blocking=True).expand(self.y.shape[0], -1)
        value = torch.zeros(())
        for _ in range(iterations):
            v = self.adjoint(self.forward(v / v.norm(dim=1, keepdim=True).clamp_min(1e-30)))
            value = v.norm(dim=1).max()
        return float(value)

    def solution(self, s: Tensor, iterations: Tensor, converged: Tensor) -> Solution:
        """The images of coefficients ``(P, n)``, with what is known of each signal ``(P,)`` gathered by image.

        The residual of measurements that are all zero is not a share but ``|A x|`` itself.
        """
        squared_residual = self._by_image(energy(self.y - self.forward(s)), "sum")
        squared_data = self._by_image(energy(self.y), "sum")
        return Solution(
            x=self.image(s),
            iterations=self._by_image(iterations, "max"),
            residual=(squared_residual / torch.where(squared_data > 0, squared_data, 1)).sqrt(),
            converged=self._by_image(converged.to(torch.uint8), "min").bool(),
        )

    def _by_image(self, values: Tensor, reduction: str) -> Tensor:
        return reduce(values, "(n p) -> n", reduction, n=self.images)


class DictionaryProblem(SparseProblem):
    """One matrix of atoms for all signals. The atoms have unit norm; `image` undoes that.

    Attributes:
        atoms: ``(m, n)`` with columns of norm 1 (or 0, for a coefficient that no measurement sees).
        norms: the columns' norms before, ``(n,)``.
    """

    def __init__(self, y: Tensor, operator: MatrixOperator, rescale: bool = True) -> None:
        """
        Args:
            y: measurements ``(N, C, L, M)``.
            operator: block or column sampling.
            rescale: divide the coefficients by the atoms' norms where they become an image. The code released
                with CLOMP does not.
        """
        self._operator = operator
        self._shape = y.shape
        self._rescale = rescale
        self.y = rearrange(y, "n c l m -> (n c l) m")
        self.noise_energy = noise_energy(operator, self.y)
        self.images, self.planes = y.shape[0], y.shape[0] * y.shape[1]
        self.n = operator.matrix.shape[1]
        atoms = self._analysis(operator.matrix.to(y))
        norms = atoms.norm(dim=0)
        self.norms = torch.where(norms > 0, norms, 1)
        self.scale = float(norms.square().mean().sqrt())
        self.atoms = atoms / self.norms

    def forward(self, s: Tensor) -> Tensor:
        return s @ self.atoms.T

    def adjoint(self, r: Tensor) -> Tensor:
        return r @ self.atoms

    def image(self, s: Tensor) -> Tensor:
        s = s / self.norms if self._rescale else s
        n, c, signals, _ = self._shape
        return self._operator.image(rearrange(self._synthesis(s), "(n c l) k -> n c l k", n=n, c=c, l=signals))

    def image_adjoint(self, x: Tensor) -> Tensor:
        s = self._transform(x)
        return s / self.norms if self._rescale else s

    def coefficients(self, x: Tensor) -> Tensor:
        s = self._transform(x)
        return s * self.norms if self._rescale else s

    def _transform(self, x: Tensor) -> Tensor:
        return self._analysis(rearrange(self._operator.signals(x), "n c l k -> (n c l) k"))

    def _analysis(self, signals: Tensor) -> Tensor:
        if isinstance(self._operator, BlockOperator):
            blocks = rearrange(signals, "p (h w) -> p h w", h=self._operator.block_size)
            return rearrange(DCT2d().analysis(blocks), "p h w -> p (h w)")
        return DCT().analysis(signals)

    def _synthesis(self, s: Tensor) -> Tensor:
        if isinstance(self._operator, BlockOperator):
            blocks = rearrange(s, "p (h w) -> p h w", h=self._operator.block_size)
            return rearrange(DCT2d().synthesis(blocks), "p h w -> p (h w)")
        return DCT().synthesis(s)


class ImageProblem(SparseProblem):
    """Every channel of every image is one signal, sparse in its 2-D DCT; A is the operator after the inverse DCT.

    A is scaled so that its columns have norm 1 on average, as those of a `DictionaryProblem` have exactly.
    """

    def __init__(self, y: Tensor, operator: MeasurementOperator) -> None:
        """
        Args:
            y: measurements ``(N, C, ...)``.
            operator: any.
        """
        self._operator = operator
        self._shape = y.shape
        self._transform = DCT2d()
        self.y = rearrange(y, "n c ... -> (n c) (...)")
        self.noise_energy = noise_energy(operator, self.y)
        self.images, self.planes = y.shape[0], y.shape[0] * y.shape[1]
        height, width = operator.image_size
        self.n = height * width
        self.scale = column_norm(operator, y)

    def forward(self, s: Tensor) -> Tensor:
        return rearrange(self._operator(self._planes(s)), "p 1 ... -> p (...)") / self.scale

    def adjoint(self, r: Tensor) -> Tensor:
        planes = self._operator.adjoint(r.reshape(r.shape[0], 1, *self._shape[2:]))
        return rearrange(self._transform.analysis(planes), "p 1 h w -> p (h w)") / self.scale

    def image(self, s: Tensor) -> Tensor:
        return rearrange(self._planes(s) / self.scale, "(n c) 1 h w -> n c h w", n=self.images)

    def image_adjoint(self, x: Tensor) -> Tensor:
        return rearrange(self._transform.analysis(x), "n c h w -> (n c) (h w)") / self.scale

    def coefficients(self, x: Tensor) -> Tensor:
        return rearrange(self._transform.analysis(x), "n c h w -> (n c) (h w)") * self.scale

    def _planes(self, s: Tensor) -> Tensor:
        return self._transform.synthesis(rearrange(s, "p (h w) -> p 1 h w", h=self._operator.image_size[0]))


def sparse_problem(y: Tensor, operator: MeasurementOperator, rescale: bool = True) -> SparseProblem:
    """The problem that fits the operator: short signals for blocks and columns, else the whole image.

    Args:
        y: measurements ``(N, C, ...)``, as ``operator(x)`` gives them.
        operator: what was measured.
        rescale: see `DictionaryProblem`.

    Raises:
        UserError: if y is not finite or not of the operator's shape, or the operator is for complex images.
    """
    check_measurements(y, operator)
    if isinstance(operator, BlockOperator | ColumnOperator):
        return DictionaryProblem(y, operator, rescale)
    return ImageProblem(y, operator)


def dictionary_problem(
    y: Tensor, operator: MeasurementOperator, method: str, rescale: bool = True
) -> DictionaryProblem:
    """As `sparse_problem`, for methods that need the atoms themselves.

    Raises:
        UserError: also if the operator mixes the whole image.
    """
    problem = sparse_problem(y, operator, rescale)
    if not isinstance(problem, DictionaryProblem):
        raise UserError(
            f"{method} needs the atoms of short signals, and {type(operator).__name__} mixes the whole image; "
            "measure with block or column, or choose iht, niht, sp or cosamp"
        )
    return problem


def energy(values: Tensor) -> Tensor:
    """``|v|^2`` of every row ``(P, ...)``, as ``(P,)``."""
    return values.abs().square().flatten(1).sum(1)


def sparsity_of(sparsity: int | None, share: float, m: int, n: int) -> int:
    """K, the number of coefficients of a signal that may differ from zero.

    Args:
        sparsity: as the user gave it; None: `share` of the measurements, at least 1.
        share: K / m where `sparsity` is None.
        m: measurements of a signal.
        n: coefficients of a signal.

    Raises:
        UserError: if more coefficients are asked for than measurements can determine.
    """
    if sparsity is None:
        # Small images that are padded have more measurements than pixels.
        return min(max(1, math.floor(share * m)), n)
    if not 1 <= sparsity <= min(m, n):
        raise UserError(
            f"sparsity {sparsity} is outside 1..{min(m, n)}: a signal has {m} measurements and {n} coefficients"
        )
    return sparsity


def largest_mask(s: Tensor, count: int) -> Tensor:
    """Mask ``(P, n)`` of the `count` entries of largest magnitude in every row."""
    indices = s.abs().topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(s, dtype=torch.bool).scatter_(1, indices, True)
