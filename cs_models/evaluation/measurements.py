"""Real measurements: reconstruct where there is no ground truth to compare with."""

from __future__ import annotations

import time

from cs_models.errors import UserError
from cs_models.evaluation.options import Options
from cs_models.evaluation.pictures import slug, write_picture
from cs_models.evaluation.plan import choose_device, make_candidate
from cs_models.evaluation.report.tables import markdown_table
from cs_models.evaluation.results import only_writer, write_table
from cs_models.numerics import relative
from cs_models.operators import make_operator, names_file, split_kind
from cs_models.operators.matrices import load_matrix
from cs_models.operators.own import is_mask, share
from cs_models.operators.recorded import load_measurements
from cs_models.reconstruction import check_finite
from cs_models.zoo.methods import parse_methods


def reconstruct_measurements(options: Options) -> str:
    """Reconstruct ``--measurements`` by every method and write the images into ``OUT/reconstructions``.

    Beside the pictures lies ``reconstructions.csv``: method, image, relative residual, iterations, seconds.

    Args:
        options: with measurements, operator and shape.

    Returns:
        the table and the folder, for the terminal.

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
    columns = ["method", "image", "residual", "iterations", "seconds"]
    lines = []
    with only_writer(out):
        folder = out / "reconstructions"
        for candidate in candidates:
            start = time.perf_counter()
            solution = candidate.solve(y, operator)
            estimates = solution.x.float().cpu()
            check_finite(estimates, f"method '{candidate.spec.text}'")
            seconds = (time.perf_counter() - start) / len(y)
            error = relative(operator(solution.x.to(device)) - y, y)
            for index, estimate in enumerate(estimates):
                write_picture(folder / f"{index:03d}_{slug(candidate.spec.text)}.png", estimate)
                steps = "" if solution.iterations is None else str(int(solution.iterations[index]))
                lines.append([candidate.spec.text, str(index), f"{error[index]:.3g}", steps, f"{seconds:.3g}"])
        write_table(out / "reconstructions.csv", columns, lines)
    return f"{markdown_table(columns, lines)}\n\n{folder}"


def _ratio_of(words: str, image_size: tuple[int, int]) -> float:
    """The CS ratio of a whole matrix or mask in a file."""
    if not names_file(words):
        raise UserError(f"give the ratio at which was measured with --operator {words}, as in --ratios 0.1")
    kind, path = split_kind(words)
    matrix = load_matrix(path)
    masks = kind in ("fourier", "pixel") or (kind is None and is_mask(matrix, image_size))
    return share(matrix) if masks else matrix.shape[0] / matrix.shape[1]
