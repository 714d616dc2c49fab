"""The command that computes principal components of image blocks, for the package or for ``--operator rows.npy``."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np

from cs_models.errors import CommandParser, UserError, report
from cs_models.moments import second_moment
from cs_models.operators.components import COMMAND, assemble, components, pack
from datamodules.catalog import find_images, fingerprint

SMALLEST_BLOCK = 4  # smaller ones lack a class of symmetry
LARGEST_BLOCK = 64  # whose moment takes 134 MB


def compute(training_sets: tuple[str, ...], block_size: int, data_dir: str | Path | None, suffix: str) -> bytes:
    """A file of the eigenvectors of ``E[x x^T]`` over the blocks of image sets, not centred.

    Args:
        training_sets: names of image sets or folders.
        block_size: B, from 4 to 64.
        data_dir: where the sets are, see `datamodules.catalog.resolve_data_dir`.
        suffix: ".safetensors" for the package's compact form, ".npy" for the rows ``(B^2, B^2)`` in float32.

    Raises:
        UserError: if the suffix or B is another one, a set is unknown or no image holds a block.
    """
    if suffix not in (".safetensors", ".npy"):
        raise UserError(f"--out ends with '{suffix}'; expected .npy for --operator, or .safetensors for the package")
    if not SMALLEST_BLOCK <= block_size <= LARGEST_BLOCK:
        raise UserError(f"--block_size must be {SMALLEST_BLOCK} to {LARGEST_BLOCK}, got {block_size}")
    tensors = components(second_moment(training_sets, block_size, data_dir))
    if suffix == ".npy":
        content = io.BytesIO()
        np.save(content, assemble(tensors).float().numpy())
        return content.getvalue()
    sets = {name: fingerprint(find_images(name, data_dir)) for name in training_sets}
    return pack(tensors, {"block_size": block_size, "sets": sets})


def main(arguments: list[str] | None = None) -> int:
    """``python -m cs_models.operators.principal --sets Train400,T91 --data_dir data --out rows.npy``."""
    parser = CommandParser(
        prog=COMMAND, description="Principal components of image blocks, largest first, as rows of a sampling matrix."
    )
    parser.add_argument("--sets", default="Train400,T91", help="image sets or folders (Train400,T91)")
    parser.add_argument("--data_dir", help="folder of the image sets ($CS_DATA, or data)")
    parser.add_argument("--block_size", type=int, default=33, help="B of BxB blocks (33)")
    parser.add_argument("--out", required=True, type=Path, help=".npy for --operator, .safetensors for the package")
    try:
        options = parser.parse_args(arguments)
        content = compute(tuple(options.sets.split(",")), options.block_size, options.data_dir, options.out.suffix)
        _write(options.out, content)
    except UserError as error:
        return report(error)
    print(f"{options.out}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
