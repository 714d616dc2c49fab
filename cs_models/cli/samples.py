"""``cs-models samples``: a file of each kind that commands take, to try those of the documentation with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cs_models.errors import CommandParser, UserError, report

NAMES = {
    "phi.npy": "a sampling matrix for blocks of 33x33 pixels, 327 rows",
    "y.npy": "an image of 256x256 pixels, measured by it",
    "photo.jpg": "a photograph in colour",
    "photos": "a folder of photographs",
    "signals.csv": "two signals, one in each column",
}
BLOCK, ROWS, SIDE = 33, 327, 256


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = CommandParser(
        prog="cs-models samples",
        description="Write files to try the commands of the documentation with: "
        + "; ".join(f"{name}, {about}" for name, about in NAMES.items())
        + ".",
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder to write into (this one)")
    try:
        write_samples(parser.parse_args(arguments).out)
    except UserError as error:
        return report(error)
    except OSError as error:
        return report(f"cannot write the samples: {error.strerror}, {error.filename}")
    for name, about in NAMES.items():
        print(f"{name:<12} {about}")
    return 0


def write_samples(folder: Path) -> None:
    """Write a file for each of `NAMES`.

    Raises:
        UserError: if one of them is there already.
        OSError: if a file cannot be written.
    """
    taken = [name for name in NAMES if (folder / name).exists()]
    if taken:
        raise UserError(f"{folder / taken[0]} is there already; samples are for a folder without files of these names")
    import numpy as np
    from PIL import Image

    from cs_models.operators import make_operator
    from cs_models.operators.matrices import gaussian_matrix, orthonormal_rows
    from datamodules.catalog import find_images, load_set
    from datamodules.signals import synthetic_signals

    (folder / "photos").mkdir(parents=True)
    np.save(folder / "phi.npy", orthonormal_rows(gaussian_matrix(ROWS, BLOCK**2, seed=0)).float().numpy())
    operator = make_operator(f"block:{folder / 'phi.npy'}", ROWS / BLOCK**2, (SIDE, SIDE))
    image = load_set("bundled")[0][1][None]
    np.save(folder / "y.npy", operator(image)[:, 0].numpy())
    photographs = [(file.name, Image.fromarray(file.read("rgb"))) for file in find_images("bundled")]
    for name, photograph in photographs:
        photograph.save(folder / "photos" / f"{name}.png")
    photographs[-1][1].save(folder / "photo.jpg", quality=95)
    signals = synthetic_signals(2)
    header = ",".join(f"signal {number}" for number in range(1, 1 + len(signals)))
    np.savetxt(folder / "signals.csv", signals.T, delimiter=",", header=header, comments="", fmt="%.6g")


if __name__ == "__main__":
    sys.exit(main())
