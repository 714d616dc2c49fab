"""``cs-models measure``: make a set of measurements from images, to try out what has no images to learn from."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cs_models.errors import CommandParser, UserError, report
from cs_models.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.catalog import BenchmarkImages
    from datamodules.measurements import Description

EPILOG = """\
DIR then holds measurements.npy, measurements.json and, where A is a file, a copy of it; no image. docs/unsupervised.md
says what these hold and how a network is trained on them.

example:
  cs-models measure photos --operator block --ratio 0.3 --shape 99,99 --out measured
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 2 after a user's mistake, which is told in one line."""
    try:
        print(measure_set(_parse(arguments)))
    except UserError as error:
        return report(error)
    return 0


class _Options:
    """What the command line asks for."""

    images: str
    operator: str
    ratio: float
    noise: float
    bits: int | None
    seed: int
    shape: tuple[int, int] | None
    limit: int | None
    data_dir: str | None
    out: Path


def _parse(arguments: Sequence[str] | None) -> _Options:
    parser = CommandParser(
        prog="cs-models measure",
        description="Measure images, and keep the measurements alone.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", metavar="IMAGES", help="a folder of images, or the name of a set")
    parser.add_argument("--operator", default="block", metavar="A", help="as in eval.py --operator (block)")
    parser.add_argument("--ratio", type=float, required=True, metavar="R", help="CS ratio in (0, 1]")
    parser.add_argument("--noise", type=float, default=0.0, metavar="SIGMA", help="of the noise, for pixels in 0..255")
    parser.add_argument("--bits", type=int, metavar="B", help="quantise each image's measurements to this many bits")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the operator's draw and of the noise (0)")
    parser.add_argument(
        "--shape", type=_size, metavar="H,W", help="cut every image into as many pieces of this size as it holds"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images, in name order")
    parser.add_argument("--data_dir", metavar="DIR", help="folder with the image sets (else $CS_DATA, else data/)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the set; a new one")
    return parser.parse_args(arguments, namespace=_Options())


def _size(text: str) -> tuple[int, int]:
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected height and width, as in 99,99, got '{text}'")
    return int(sides[0]), int(sides[1])


def measure_set(options: _Options) -> str:
    """Measure, and write the set.

    Returns:
        what was written, for the terminal.

    Raises:
        UserError: for images or an operator that there are not, sizes that do not go together, or a folder that is
            in use or cannot be written.
    """
    from datamodules.catalog import load_set

    if options.bits is not None and not 1 <= options.bits <= 16:
        raise UserError(f"--bits {options.bits}: expected 1 to 16")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"--out {options.out} is not empty; give a new folder, in which nothing can be mixed up")
    images = load_set(options.images, options.data_dir, "luminance", options.limit)
    size = options.shape or _common_size(images)
    description = _description(options, size)
    y = _measurements(options, images, size)
    _write(options, description, y)
    height, width = size
    return f"{len(y)} images of {height}x{width}, {tuple(y.shape[1:])} measurements each: {options.out}"


def _description(options: _Options, size: tuple[int, int]) -> Description:
    """What the set says of itself; a matrix in a file lies beside it, as ``matrix.npy`` or ``matrix.mat``."""
    from cs_models.operators import names_file, split_kind
    from datamodules.measurements import Description

    words = options.operator
    if names_file(words):
        path = split_kind(words)[1]
        words = words.removesuffix(path) + "matrix" + Path(path).suffix.lower()
    return Description(words, size, options.ratio, options.seed, options.noise, options.bits)


def _common_size(images: BenchmarkImages) -> tuple[int, int]:
    sizes = sorted({file.size() for file in images.files})
    if len(sizes) > 1:
        (height, width), other = sizes[0], sizes[-1]
        raise UserError(
            f"the images have several sizes, {height}x{width} to {other[0]}x{other[1]}, and a set has one; "
            "--shape 99,99 cuts them into pieces of one size"
        )
    return sizes[0]


def _measurements(options: _Options, images: BenchmarkImages, size: tuple[int, int]) -> Tensor:
    """``(N, 1, ...)`` of all pieces of all images, in order."""
    import torch

    from cs_models.evaluation.protocol import measure
    from cs_models.host_memory import check_memory
    from cs_models.operators import make_operator

    operator = make_operator(options.operator, options.ratio, size, options.seed, options.noise / 255)
    height, width = size
    count = sum((rows // height) * (columns // width) for rows, columns in (file.size() for file in images.files))
    if not count:
        raise UserError(f"no image holds a piece of {height}x{width}; give a smaller --shape")
    # Each by itself, all of them together, and what is written.
    check_memory(int(12 * count * height * width * operator.measured_ratio), f"the measurements of {count} images")
    parts = []
    with Progress(count, "measuring", "pieces") as bar:
        for piece in _pieces(images, size):
            parts.append(measure(operator, piece, options.seed, options.bits))
            bar.update()
    return torch.cat(parts)


def _pieces(images: BenchmarkImages, size: tuple[int, int]) -> Iterator[Tensor]:
    """Pieces ``(1, H, W)`` that do not overlap, row by row."""
    height, width = size
    for index in range(len(images)):
        image = images[index][1]
        for row in range(image.shape[-2] // height):
            for column in range(image.shape[-1] // width):
                top, left = row * height, column * width
                yield image[:, top : top + height, left : left + width].contiguous()


def _write(options: _Options, description: Description, y: Tensor) -> None:
    import numpy as np

    from cs_models.files import replacing
    from cs_models.operators import names_file, split_kind
    from datamodules.measurements import DESCRIPTION

    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if names_file(options.operator):
            shutil.copyfile(split_kind(options.operator)[1], options.out / description.path)
        with replacing(options.out / "measurements.npy") as partial, open(partial, "wb") as file:
            np.save(file, y.numpy())
        with replacing(options.out / DESCRIPTION) as partial:
            partial.write_text(json.dumps(asdict(description), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {options.out}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
