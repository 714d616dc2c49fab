"""Every method with matrices as users have them: PSNR on two bundled photographs, in one table.

``python benchmarks/own_matrix.py [--ratio 0.1] [--noise 0] [--side 99] [--methods fista,tv]``. The matrices of 33x33
blocks are orthonormal, Gaussian, scaled, with repeated rows, and mixed up, all with the same row space; +-1 and 0/1
with row spaces of their own, beside the same made orthonormal; and of deficient rank, beside the orthonormal basis.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.metrics import psnr
from cs_models.operators import make_operator
from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows, rows_for_ratio
from cs_models.zoo.methods import METHODS, build_method, zoo
from datamodules.catalog import load_set

BLOCK = 33
SETTINGS = {name: f"{name}:epochs=100" for name in ("clomp", "clomp_warm")}
# A network for one matrix, and a sampler that needs a model, take no matrix of the user's.
WITHOUT = ("ddnm",)
FLEXIBLE = ("r_coast", "ista_net_pp", "scnet")


def matrices(ratio: float) -> dict[str, Tensor]:
    """The matrices ``(M, 1089)`` of the table, by name."""
    rows, n = rows_for_ratio(ratio, BLOCK**2), BLOCK**2
    gaussian = gaussian_matrix(rows, n, 0)
    orthonormal = orthonormal_rows(gaussian)
    signs = gaussian_matrix(rows, n, 1).sign()
    bits = (gaussian_matrix(rows, n, 2) > 0).double()
    few = orthonormal[: rows // 2]
    return {
        "orthonormal": orthonormal,
        "Gaussian": gaussian,
        "x 0.001": 0.001 * orthonormal,
        "x 100": 100 * orthonormal,
        "half the rows twice": torch.cat([orthonormal, gaussian[: rows // 2]]),
        "+-1": signs,
        "+-1, orthonormal": orthonormal_rows(signs),
        "0/1": bits,
        "0/1, orthonormal": orthonormal_rows(bits),
        "half the rank": gaussian_matrix(rows, rows // 2, 3) @ few,
        "half the rank, orthonormal": few,
    }


def photographs(side: int) -> Tensor:
    """The middle of two bundled photographs ``(2, 1, side, side)`` in [0, 1]."""
    images = [image for _, image in load_set("bundled")][:2]
    middles = []
    for image in images:
        top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
        middles.append(image[:1, top : top + side, left : left + side])
    return torch.stack(middles)


def table(methods: Sequence[str], ratio: float, noise: float, side: int, report: Callable[[str], None]) -> None:
    """Report the table line by line, in Markdown.

    Args:
        methods: names, with settings where wanted.
        ratio: CS ratio.
        noise: standard deviation of the noise on the measurements of an orthonormal matrix, on the scale 0..255; that
            of another matrix is scaled as its rows are.
        side: of the photographs.
        report: takes a line.
    """
    x, known = photographs(side), matrices(ratio)
    report("| method | " + " | ".join(known) + " |")
    report("| --- |" + " --- |" * len(known))
    for method in methods:
        reconstructor = build_method(method, ratio)
        cells = []
        for matrix in known.values():
            rows = matrix.norm(dim=1).square().mean().sqrt().item()
            operator = make_operator(matrix, matrix.shape[0] / matrix.shape[1], (side, side), 0, rows * noise / 255)
            y = operator.measure(x, torch.Generator().manual_seed(0))
            try:
                estimate = reconstructor.reconstruct(y, operator).clamp(0, 1)
                cells.append(f"{psnr(estimate, x).mean():.2f}")
            except UserError as error:
                cells.append(str(error)[:60])
        report(f"| `{method}` | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, on the scale 0..255")
    parser.add_argument("--side", type=int, default=99, help="pixels of the photographs' sides")
    parser.add_argument("--methods", help="separated by commas; all where not given")
    words = parser.parse_args()
    flexible = [name for name in zoo() if name in FLEXIBLE]
    names = words.methods.split(",") if words.methods else [*METHODS, *flexible]
    methods = [SETTINGS.get(name, name) for name in names if name not in WITHOUT]
    table(methods, words.ratio, words.noise, words.side, print)


if __name__ == "__main__":
    main()
