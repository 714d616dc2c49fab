"""Sampling matrices: seeded and nested, or a user's own from a file."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cs_models.arrays import read_mat, read_npy
from cs_models.errors import UserError
from cs_models.files import is_file
from cs_models.host_memory import check_memory


def rows_for_ratio(ratio: float, n: int) -> int:
    """Measurements of a signal of n samples: ``max(1, floor(ratio n + 1/2))``, the ISTA-Net family's rule.

    Raises:
        UserError: if the ratio is outside (0, 1].
    """
    check_ratio(ratio)
    return max(1, math.floor(ratio * n + 0.5))


def check_ratio(ratio: float) -> None:
    """Raise UserError if a CS ratio is outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise UserError(f"ratio {ratio:g} is outside (0, 1]; 0.1 means 10 measurements for 100 pixels")


def shapes_only() -> bool:
    """Whether modules are being built under ``torch.device("meta")``, for their shapes and without any numbers."""
    return torch.get_default_device().type == "meta"


def check_matrix_memory(rows: int, n: int) -> None:
    """Refuse a random matrix ``(rows, n)`` that would not fit into memory while its rows are made orthonormal.

    Raises:
        UserError: with what it needs and what there is.
    """
    if not shapes_only():
        # In float64: the matrix, its transpose, Q and R.
        check_memory(32 * rows * n, f"a random matrix of {rows}x{n}")


def gaussian_matrix(rows: int, n: int, seed: int) -> Tensor:
    """Standard normal ``(rows, n)`` in float64; the first rows are the same for every number of rows.

    numpy's RandomState is frozen, so a seed means the same matrix on every machine and in every later version.

    Raises:
        UserError: if it does not fit into memory.
    """
    check_matrix_memory(rows, n)
    if shapes_only():
        return torch.empty(rows, n, dtype=torch.float64)
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((rows, n)))


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """Gram-Schmidt on the rows, first to last: the first k rows span what the first k rows of the input span.

    Args:
        matrix: ``(M, n)`` with M <= n.
    """
    q: Tensor
    q, r = torch.linalg.qr(matrix.T)
    return (q * torch.sign(torch.diagonal(r))).T.contiguous()


def structured_rows(ratio: float, n: int) -> int:
    """Rows of structurally random sampling, ``ceil(ratio n)`` (the IDM paper's q).

    Raises:
        UserError: if the ratio is outside (0, 1].
    """
    check_ratio(ratio)
    # The small term keeps 0.1 * 1000 = 100.000...01 from gaining a row by binary rounding.
    return max(1, math.ceil(ratio * n - 1e-9))


def unit_norm_columns(matrix: Tensor) -> Tensor:
    """Every column scaled to Euclidean norm 1, as the CLOMP paper's sampling has them."""
    lengths: Tensor = matrix.norm(dim=0, keepdim=True)
    return matrix / lengths


def load_matrix(path: str | Path, key: str = "phi") -> Tensor:
    """A sampling matrix ``(M, n)`` or a mask ``(H, W)`` from a `.npy` or `.mat` file, in float64.

    Args:
        path: the file; pickled content is refused.
        key: name of the variable inside a `.mat` file. Where it is absent and the file holds exactly one array,
            that one is taken.

    Raises:
        UserError: if the file is missing, unreadable, of another type, or not a finite real matrix.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"matrix file not found: {path}; give an existing .npy or .mat file")
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".mat"):
        raise UserError(f"matrix file {path} has the suffix '{path.suffix}'; expected .npy or .mat")
    array = read_npy(path) if suffix == ".npy" else read_mat(path, key)
    return check_matrix(array, str(path))


def check_matrix(matrix: Tensor | np.ndarray, name: str = "the matrix") -> Tensor:
    """A matrix as a tensor in float64 on the CPU.

    Args:
        matrix: real, of two dimensions.
        name: what to call it in errors.

    Raises:
        UserError: if it is not a finite real matrix.
    """
    array = np.asarray(matrix.detach().cpu()) if isinstance(matrix, Tensor) else np.asarray(matrix)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise UserError(f"{name} holds {array.dtype} of shape {array.shape}; expected a real matrix of two dimensions")
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds values that are not finite")
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def take_rows(matrix: Tensor, ratio: float, origin: str) -> Tensor:
    """The rows of a given matrix that sample at a ratio: all of them, or the first ones of a larger matrix.

    A matrix whose number of rows is within one of the rule's is taken whole, since released matrices round
    differently (544 or 545 rows of 1089 at 50 %).

    Raises:
        UserError: if the matrix has too few rows.
    """
    available, n = matrix.shape
    wanted = rows_for_ratio(ratio, n)
    if abs(available - wanted) <= 1:
        return matrix
    if available < wanted:
        raise UserError(
            f"{origin} has {available} rows of {n}, ratio {available / n:.3g}; ratio {ratio:g} needs {wanted} rows"
        )
    return matrix[:wanted]


def sha256_of(path: str | Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    """Hexadecimal sha256 of a tensor's values, in its dtype, row-major."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def module_sha256(module: nn.Module) -> str:
    """Hexadecimal sha256 of a module's parameters and buffers, with their names."""
    state = [f"{name} {tensor_sha256(value)}" for name, value in sorted(module.state_dict().items())]
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


def file_source(path: str | Path) -> dict[str, Any]:
    """How an operator's `spec` names a file."""
    return {"file": Path(path).name, "sha256": sha256_of(path)}
