"""Principal components of image blocks as sampling rows: how they are kept, and read with their checksum.

The second moment of blocks does not change when all blocks are flipped or transposed. Each of its eigenvectors is
therefore even or odd under either flip; one that is even, or odd, under both is symmetric or antisymmetric under
transposition; and one that is even under one and odd under the other has its transpose as a partner of the same
eigenvalue. So five orthogonal matrices, one per class, hold everything in an eighth of the numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load, save
from torch import Tensor

from cs_models.errors import UserError
from cs_models.numerics import for_good
from cs_models.operators.matrices import orthonormal_rows

# Block sizes whose components are part of the package, and the sha256 of their files, which the command of
# `cs_models.operators.principal` wrote from Train400 and T91. Checkpoints name these rows by the word "pca" alone, so a
# file that is computed anew may not take their place.
SHA256 = {
    32: "d392af06107fb3582d5ac53f73460c20bfe4063273a81397a770037181dfbb7a",
    33: "c074c3b811f174eb8fc21e71681fd06f39b8100e692759ae9153bb82a477ee9c",
}
COMMAND = "python -m cs_models.operators.principal"


def principal_rows(rows: int, block_size: int) -> Tensor:
    """The first principal components of the package's file, ``(rows, B^2)`` in float32, orthonormal.

    Raises:
        UserError: if the package has none for this block size, or its file is missing or damaged.
    """
    check_block_size(block_size)
    return _shipped(block_size)[:rows].float()


def principal_source(block_size: int) -> dict[str, Any]:
    """How an operator's `spec` names the file of a block size."""
    return {"file": _shipped_path(block_size).name, "sha256": SHA256[block_size]}


def check_block_size(block_size: int) -> None:
    """Raise UserError if the package has no principal components for blocks of a size."""
    if block_size not in SHA256:
        sizes = " and ".join(f"{size}x{size}" for size in sorted(SHA256))
        raise UserError(
            f"there are principal components for blocks of {sizes}, not of {block_size}x{block_size}; compute these "
            f"with {COMMAND} --block_size {block_size} --out rows.npy and give --operator rows.npy"
        )


def _shipped_path(block_size: int) -> Path:
    return Path(__file__).with_name(f"pca_{block_size}.safetensors")


@lru_cache(maxsize=2)
@for_good()
def _shipped(block_size: int) -> Tensor:
    return read_components(_shipped_path(block_size), SHA256[block_size])


def read_components(path: Path, sha256: str) -> Tensor:
    """All rows of a file of principal components.

    Args:
        path: the file.
        sha256: of its content; nothing is parsed before it agrees.

    Returns:
        ``(B^2, B^2)`` in float64, orthonormal, largest eigenvalue first.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the principal components {path}: {error.strerror}; install again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"the principal components {path} are damaged: their sha256 is {found[:12]}..., not {sha256[:12]}...; "
            "install again"
        )
    return assemble(load(content))


def pack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The content of a file of principal components.

    Args:
        tensors: as `components` gives them; directions are kept in float16, whose rounding `assemble` straightens.
        facts: where they come from, ready for JSON, for whoever looks into the file.
    """
    kept = {name: value.float() if name.startswith("values") else value.half() for name, value in tensors.items()}
    return save({name: value.contiguous() for name, value in kept.items()}, {"cs_models": json.dumps(facts)})


def components(moment: Tensor) -> dict[str, Tensor]:
    """Eigenvectors of a second moment, class by class, with deterministic signs.

    Args:
        moment: ``(B^2, B^2)``, unchanged where blocks are flipped or transposed.

    Returns:
        For each class of d dimensions ``vectors.CLASS`` ``(d, d)``, rows in the coordinates of `symmetry_bases`, and
        ``values.CLASS`` ``(d,)``, largest first.
    """
    tensors = {}
    for name, basis in symmetry_bases(math.isqrt(moment.shape[0])).items():
        values, vectors = torch.linalg.eigh(basis @ moment.to(basis) @ basis.T)
        rows = vectors.T.flip(0)
        # The first of a row's large coordinates is positive; its very largest may be one of two of about the same size.
        large = (rows.abs() >= 0.5 * rows.abs().amax(1, keepdim=True)).int().argmax(1, keepdim=True)
        tensors[f"vectors.{name}"] = rows * rows.gather(1, large).sign()
        tensors[f"values.{name}"] = values.flip(0)
    return tensors


def assemble(tensors: Mapping[str, Tensor]) -> Tensor:
    """Rows from what `components` gives or a file keeps of it, made orthonormal within each class.

    Returns:
        ``(B^2, B^2)`` in float64, largest eigenvalue first; a partner follows the row that it is the transpose of.
    """
    dimensions = sum(len(value) for name, value in tensors.items() if name.startswith("values"))
    size = math.isqrt(dimensions + len(tensors["values.mixed"]))
    values, rows = [], []
    for name, basis in symmetry_bases(size).items():
        values.append(tensors[f"values.{name}"])
        rows.append(orthonormal_rows(tensors[f"vectors.{name}"].double()) @ basis)
    values.append(tensors["values.mixed"])
    rows.append(rearrange(rows[-1], "k (p q) -> k (q p)", p=size))
    order = torch.cat(values).argsort(descending=True, stable=True)
    return torch.cat(rows)[order]


def symmetry_bases(size: int) -> dict[str, Tensor]:
    """Orthonormal bases of the classes of BxB blocks, ``(d, B^2)`` each in float64.

    Those named even, or odd, are so under both flips; blocks of "mixed", the last one, are even upside down and odd
    from left to right. The transposes of these are the one class that is not listed.
    """
    identity = torch.eye(size, dtype=torch.float64)
    even = F.normalize(identity + identity.flip(1))[: (size + 1) // 2]
    odd = F.normalize(identity - identity.flip(1))[: size // 2]
    return {
        "even_symmetric": _products(even, 1),
        "even_antisymmetric": _products(even, -1),
        "odd_symmetric": _products(odd, 1),
        "odd_antisymmetric": _products(odd, -1),
        "mixed": torch.kron(even, odd),
    }


def _products(half: Tensor, sign: int) -> Tensor:
    """Symmetric (sign 1) or antisymmetric (-1) blocks whose rows and columns are spanned by `half` ``(k, B)``."""
    products = torch.einsum("ia,jb->ijab", half, half)
    first, second = torch.triu_indices(len(half), len(half), offset=0 if sign > 0 else 1)
    return F.normalize((products + sign * products.transpose(0, 1))[first, second].flatten(1))
