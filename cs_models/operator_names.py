"""Every measurement operator that the command line knows by name. Listing them needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cs_models.errors import UserError, nearest


@dataclass(frozen=True)
class NamedOperator:
    """An operator that has a name.

    Attributes:
        name: as it is typed.
        target: ``module:callable``, imported when the operator is used. It is called with the keyword arguments
            ``ratio``, ``image_size``, ``seed`` and ``noise_sigma``.
        summary: one line.
        number: the argument of the target that a number after the name sets, as in ``block:32``; None if it takes none.
    """

    name: str
    target: str
    summary: str
    number: str | None = None


# Adding an operator is its file and one line here.
OPERATORS: dict[str, NamedOperator] = {
    operator.name: operator
    for operator in (
        NamedOperator(
            "block",
            "cs_models.operators.block:BlockOperator.gaussian",
            "random orthonormal rows on blocks of 33x33; block:32 for 32x32",
            "block_size",
        ),
        NamedOperator(
            "block:pca",
            "cs_models.operators.block:BlockOperator.principal",
            "principal components of photographs on blocks of 33x33; block:pca:32 for 32x32",
            "block_size",
        ),
        NamedOperator(
            "structured",
            "cs_models.operators.structured:StructuredOperator.gaussian",
            "random orthonormal rows on 32^2 pixels of a permuted image at a time; structured:16 for 16^2",
            "block_size",
        ),
        NamedOperator(
            "column", "cs_models.operators.column:ColumnOperator.gaussian", "a random matrix on columns or 1-D signals"
        ),
        NamedOperator("pixel", "cs_models.operators.pixel:PixelOperator", "random pixels (inpainting)"),
        NamedOperator(
            "transform2d",
            "cs_models.operators.transform2d:Transform2dOperator",
            "random signs, then random coefficients of the 2-D DCT",
        ),
        NamedOperator(
            "radial", "cs_models.operators.fourier:FourierOperator.radial", "lines through the spectrum's centre (MRI)"
        ),
        NamedOperator("fourier", "cs_models.operators.fourier:FourierOperator.radial", "the same as radial"),
        NamedOperator(
            "cartesian", "cs_models.operators.fourier:FourierOperator.cartesian", "columns of the spectrum (MRI)"
        ),
        NamedOperator(
            "radon",
            "cs_models.operators.radon:RadonOperator.for_ratio",
            "parallel beams (tomography); radon:20 for 20 views, at a ratio that means as many",
            "views",
        ),
    )
}


def find_operator(spec: str) -> tuple[NamedOperator, dict[str, int]]:
    """The operator of ``NAME`` or ``NAME:NUMBER``, and the number, if there is one, as a keyword argument.

    Raises:
        UserError: for an unknown name, or a number that the operator does not take.
    """
    # Of block and block:pca the longer name counts.
    name = max((name for name in OPERATORS if f"{spec}:".startswith(f"{name}:")), key=len, default=None)
    if name is None:
        known = nearest(spec.partition(":")[0], OPERATORS)
        raise UserError(f"unknown operator '{spec}', and no .npy or .mat file{known}")
    operator, number = OPERATORS[name], spec.removeprefix(name).removeprefix(":")
    if not number:
        return operator, {}
    if operator.number is None or not re.fullmatch(r"0*[1-9]\d{0,8}", number):
        numbered = ", ".join(other.name for other in OPERATORS.values() if other.number)
        raise UserError(
            f"cannot read the operator '{spec}'; a number belongs to {numbered}, as in block:32 and block:pca:32"
        )
    return operator, {operator.number: int(number)}


def list_operators() -> list[tuple[str, str]]:
    """Name and one line of every operator."""
    return [(operator.name, operator.summary) for operator in OPERATORS.values()]
