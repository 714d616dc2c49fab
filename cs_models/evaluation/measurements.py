"""Real measurements: reconstruct where there is no ground truth to compare with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from cs_models.errors import UserError
from cs_models.evaluation.options import Options
from cs_models.evaluation.pictures import distinct_slugs, write_array, write_picture
from cs_models.evaluation.plan import make_candidate
from cs_models.evaluation.processes import choose_device
from cs_models.evaluation.protocol import operator_label
from cs_models.evaluation.report.figures import save
from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.report.strips import read_tile, strip
from cs_models.evaluation.report.web import write_pages
from cs_models.evaluation.results import only_writer, write_table
from cs_models.numerics import relative
from cs_models.operators import make_operator, names_file, split_kind
from cs_models.operators.matrices import load_matrix
from cs_models.operators.own import is_mask, share
from cs_models.operators.recorded import load_measurements
from cs_models.progress import Progress
from cs_models.reconstruction import check_finite
from cs_models.zoo.methods import parse_methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Images whose highest value is below it look black.
FAINT = 0.1


def reconstruct_measurements(options: Options) -> str:
    """Reconstruct ``--measurements`` by every method and write the images into ``OUT/reconstructions``.

    Of each there is a picture, and a ``.npy`` file with its values, which measurements on a scale of their own put
    anywhere: a picture whose values leave [0, 1], or fill little of it, spans its own range from black to white. Beside
    them lies ``reconstructions.csv``: method, image, relative residual, iterations, seconds, range of the values, file.
    ``reconstructions.html`` and ``.md`` say the same, and show the first image by every method.

    Args:
        options: with measurements, operator and shape.

    Returns:
        the table, which says where each image lies, and the report's files, for the terminal.

    Raises:
        UserError: if the measurements cannot be read, do not fit the operator, or a method cannot work with it.
    """
    measuring, out = options.measuring, options.output.out
    assert measuring.measurements is not None
    assert measuring.operator is not None
    device = choose_device(options.execution.device)
    height, width = measuring.shape
    ratio = (
        options.comparison.ratios[0] if options.comparison.ratios else _ratio_of(measuring.operator, (height, width))
    )
    operator = make_operator(measuring.operator, ratio, (height, width), measuring.draws[0], measuring.noise / 255)
    operator = operator.to(device)
    y = load_measurements(measuring.measurements, operator).to(device)
    pairs = parse_methods(options.comparison.methods, [ratio])
    candidates = [make_candidate(spec, ratio, options.execution, device) for spec, ratio in pairs]
    for candidate in candidates:
        candidate.to(device)
        if candidate.network is not None:
            candidate.network.check_operator(operator)
    columns = ["method", "image", "residual", "iterations", "seconds", "lowest", "highest", "file"]
    names = distinct_slugs(candidate.spec.text for candidate in candidates)
    lines: list[list[str]] = []
    ranges: list[tuple[float, float]] = []
    tiles = []
    folder = out / "reconstructions"
    with only_writer(out), Progress(len(candidates), unit="methods") as bar:
        for candidate in candidates:
            bar.about(candidate.spec.text)
            start = time.perf_counter()
            solution = candidate.solve(y, operator)
            estimates = solution.x.float().cpu()
            check_finite(estimates, f"method '{candidate.spec.text}'")
            seconds = (time.perf_counter() - start) / len(y)
            error = relative(operator(solution.x.to(device)) - y, y)
            for index, estimate in enumerate(estimates):
                place, (low, high) = folder / f"{index:03d}_{names[candidate.spec.text]}.png", _range(estimate)
                write_picture(place, to_unit_range(estimate))
                write_array(place.with_suffix(".npy"), estimate.permute(1, 2, 0).squeeze(-1))
                steps = "" if solution.iterations is None else str(int(solution.iterations[index]))
                cells = [f"{value:.3g}" for value in (error[index], seconds, low, high)]
                lines.append(
                    [candidate.spec.text, str(index), cells[0], steps, *cells[1:], f"{folder.name}/{place.name}"]
                )
                ranges.append((low, high))
                if index == 0:
                    tiles.append(read_tile(place, f"{candidate.spec.text}\nresidual {cells[0]}"))
            bar.update()
        write_table(out / "reconstructions.csv", columns, lines)
        taken = f"measured as {operator_label(operator)}; {range_line(ranges)}"
        files = _write_report(out, taken, markdown_table(columns, lines), strip([("", tiles)]))
    places = [str(out / line[-1]) for line in lines]
    return "\n".join([markdown_table(columns, lines), "", taken, *places, *map(str, files)])


def _write_report(out: Path, taken: str, table: str, figure: Figure) -> list[Path]:
    picture = out / "figures" / "reconstructions.png"
    save(figure, picture)
    sections = [
        "# Reconstructions of measurements",
        f"{taken[0].upper()}{taken[1:]}.",
        table,
        f"![the first image by each method](figures/{picture.name})",
    ]
    return [*write_pages(out, "reconstructions", sections), picture]


def _range(image: Tensor) -> tuple[float, float]:
    return float(image.min()), float(image.max())


def _fits_pictures(low: float, high: float) -> bool:
    return low >= 0 and FAINT <= high <= 1


def to_unit_range(image: Tensor) -> Tensor:
    """An image as its picture shows it: as it is, or scaled to [0, 1] by its own lowest and highest value."""
    low, high = _range(image)
    if low == high or _fits_pictures(low, high):
        return image
    image = image.double()  # the difference of two values may be too large, or too small, for float32
    return (image - low) / (high - low)


def range_line(ranges: Sequence[tuple[float, float]]) -> str:
    """Where the values of images lie, by lowest and highest value of each, and what pictures make of that."""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    line = f"values from {low:.3g} to {high:.3g}, kept in .npy files beside the pictures"
    if all(_fits_pictures(*one) for one in ranges):
        return line
    return f"{line}, which span each image's own range; methods are made for images in [0, 1]"


def _ratio_of(words: str, image_size: tuple[int, int]) -> float:
    """The CS ratio of a whole matrix or mask in a file."""
    if not names_file(words):
        raise UserError(f"give the ratio at which was measured with --operator {words}, as in --ratios 0.1")
    kind, path = split_kind(words)
    matrix = load_matrix(path)
    masks = kind in ("fourier", "pixel") or (kind is None and is_mask(matrix, image_size))
    return share(matrix) if masks else matrix.shape[0] / matrix.shape[1]
