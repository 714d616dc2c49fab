"""How a reconstruction grows, iteration by iteration (Figure 2 of "Recursions Are All You Need").

``python -m cs_models.evaluation.iterates METHOD --image FILE --ratio 0.1 --out DIR``
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cs_models.errors import CommandParser, UserError, report
from cs_models.evaluation.report.strips import Tile, strip
from cs_models.metrics import psnr
from cs_models.operators import make_operator
from cs_models.training.module import ReconstructionModule
from cs_models.zoo.methods import build_method
from datamodules.catalog import image_tensor
from datamodules.images import read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 6


def iterates(
    method: str,
    image: Tensor,
    ratio: float,
    operator_words: str | None = None,
    seed: int = 0,
    iterations_per_layer: Sequence[int] | None = None,
) -> tuple[list[Tensor], list[float]]:
    """Every intermediate reconstruction of an image, and its PSNR.

    Args:
        method: name of a zoo network or path of a checkpoint.
        image: ``(1, H, W)`` in [0, 1].
        ratio: CS ratio.
        operator_words: see `cs_models.operators.make_operator`; the network's own operator by default.
        seed: of the operator's draw.
        iterations_per_layer: another schedule than the network's own.

    Returns:
        reconstructions ``(1, H, W)`` clipped to [0, 1], and PSNR in dB.

    Raises:
        UserError: if the method is no unfolding network, or does not take the operator or the schedule.
    """
    module = build_method(method, ratio)
    if not isinstance(module, ReconstructionModule):
        raise UserError(f"method '{method}' has no intermediate reconstructions here; give an unfolding network")
    if iterations_per_layer is not None:
        module.set_schedule(iterations_per_layer)
    size = (image.shape[-2], image.shape[-1])
    if operator_words is None:
        operator = module.default_operator(ratio, size, seed)
    else:
        operator = make_operator(operator_words, ratio, size, seed)
    target = image[None]
    estimates = [x.clamp(0, 1) for x in module.reconstruct(operator(target), operator, return_all=True)]
    return [x[0] for x in estimates], [psnr(x, target).item() for x in estimates]


def write(estimates: Sequence[Tensor], psnr_db: Sequence[float], image: Tensor, out: Path) -> list[Path]:
    """Write ``iterates.csv``, the curve and a strip of pictures.

    Raises:
        UserError: if the folder cannot be written.
    """
    files = [out / "iterates.csv", out / "psnr_per_iteration.png", out / "iterates.png"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(files[0], "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["iteration", "psnr_db"])
            writer.writerows([number, f"{value:.4f}"] for number, value in enumerate(psnr_db, start=1))
        _curve(psnr_db).savefig(files[1], dpi=120)
        _strip(estimates, psnr_db, image).savefig(files[2], dpi=120)
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error
    return files


def _curve(psnr_db: Sequence[float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(1, len(psnr_db) + 1), psnr_db, marker="o")
    axes.set(xlabel="iteration", ylabel="PSNR in dB")
    axes.grid(alpha=0.3)
    return figure


def _strip(estimates: Sequence[Tensor], psnr_db: Sequence[float], image: Tensor) -> Figure:
    """A few iterations, equally spaced from the first to the last, and the original."""
    chosen = torch.linspace(0, len(estimates) - 1, min(PICTURES, len(estimates))).round().long().tolist()
    titles = [*(f"iteration {index + 1}\n{psnr_db[index]:.2f} dB" for index in chosen), "original\n"]
    pictures = [*(estimates[index] for index in chosen), image]
    return strip([("", [Tile(title, 255 * one[0].numpy()) for title, one in zip(titles, pictures, strict=True)])])


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = CommandParser(
        prog="python -m cs_models.evaluation.iterates",
        description="Show how an unfolding network's reconstruction grows, iteration by iteration.",
    )
    parser.add_argument("method", help="name of a zoo network, or path of a checkpoint")
    parser.add_argument("--image", required=True, help="the picture; its luminance is measured")
    parser.add_argument("--ratio", type=float, default=0.1, help="CS ratio (0.1)")
    parser.add_argument("--operator", help="what it is measured with (else the network's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the operator's draw (0)")
    parser.add_argument("--iterations_per_layer", type=_counts, help="schedule, as 4,4,4,4,4")
    parser.add_argument("--out", type=Path, default=Path("results/iterates"), help="folder (results/iterates)")
    try:
        options = parser.parse_args(arguments)
        image = image_tensor(read_image(Path(options.image)))
        estimates, psnr_db = iterates(
            options.method, image, options.ratio, options.operator, options.seed, options.iterations_per_layer
        )
        files = write(estimates, psnr_db, image, options.out)
    except UserError as error:
        return report(error)
    print(f"PSNR {psnr_db[0]:.2f} dB after 1 iteration, {psnr_db[-1]:.2f} dB after {len(psnr_db)}")
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
