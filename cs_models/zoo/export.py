"""``cs-models export``: a trained network and its sampling as files that run without this package.

``cs-models export r_coast --ratio 0.1 --out r_coast.onnx`` writes two graphs: ``r_coast.onnx`` reconstructs and
``r_coast_measure.onnx`` measures, both with the sampling matrix inside. ``.pt2`` in place of ``.onnx`` writes torch's
own format.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cs_models import __version__
from cs_models.errors import CommandParser, UserError, first_line, report
from cs_models.files import replacing
from cs_models.progress import Progress

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SUFFIXES = (".onnx", ".pt2")
# What torch.onnx needs beside torch.
PACKAGES = ("onnx", "onnxscript")
# Older ones cannot trace sizes that are themselves inputs.
OLDEST_TORCH = 2, 13
# Names of what goes in and comes out, by graph.
NAMES = {"measure": (["x"], ["y"]), "reconstruct": (["y", "size"], ["x"])}


def export(name: str, ratio: float, out: str | Path, operator: str | None = None, seed: int = 0) -> tuple[Path, Path]:
    """Write a network and its sampling at one ratio as two graphs in float32.

    Both take any number of one-channel images of any size, which is padded to whole blocks inside:

    * measure: ``x (N, 1, H, W)`` in [0, 1] to ``y (N, 1, L, M)``, L blocks row by row and M measurements of each;
    * reconstruct: y and ``size``, the integers H and W, to ``x (N, 1, H, W)``, which is not clipped.

    Args:
        name: of a shipped network, or a checkpoint's path.
        ratio: CS ratio in (0, 1].
        out: the file of the graph that reconstructs, `.onnx` or `.pt2`; the other one lies beside it and has
            ``_measure`` in its name.
        operator: as for `cs_models.operators.make_operator`; where it is not given, what the network is evaluated
            with by default.
        seed: of a random matrix.

    Returns:
        the files that reconstruct and measure.

    Raises:
        UserError: if the network cannot be exported or has no weights for the ratio, if a package is missing, or
            if a file cannot be written.
    """
    out = Path(out)
    check_output(out)
    # Both take seconds to import, and mistakes are told before.
    from cs_models.operators import BlockOperator, make_operator
    from cs_models.operators.matrices import check_ratio
    from cs_models.training.module import ReconstructionModule
    from cs_models.zoo.graphs import check_exportable, trace
    from cs_models.zoo.methods import build_method, parse_method

    check_ratio(ratio)
    spec = parse_method(name)
    if spec.training_free:
        raise UserError(f"'{name}' needs no training and has no graph; export is for unfolding networks, as r_coast is")
    module = build_method(spec, ratio)
    if not isinstance(module, ReconstructionModule):
        raise UserError(f"'{name}' is no trained network of this framework; export is for unfolding networks")
    any_size = 127, 131  # of which no matrix is one of columns
    if operator is None:
        sampling = module.default_operator(ratio, any_size, seed)
    else:
        sampling = make_operator(operator, ratio, any_size, seed)
    check_exportable(module, sampling, name)
    assert isinstance(sampling, BlockOperator)
    facts = {"cs_models": __version__, "network": name, "ratio": ratio, "operator": sampling.spec}
    measuring = out.with_name(f"{out.stem}_measure{out.suffix}")
    with Progress(3, "export", "parts") as progress:  # what is recorded, and each file
        graphs = trace(module, sampling)  # type: ignore[arg-type]  # `check_exportable` has seen to it
        progress.update()
        for path, graph in ((out, "reconstruct"), (measuring, "measure")):
            _write(getattr(graphs, graph), path, graph, facts | {"graph": graph, "settings": module.settings()})
            progress.update()
    return out, measuring


def check_output(path: Path) -> None:
    """Raise UserError unless a file of this suffix can be written with what is installed."""
    torch = importlib.metadata.version("torch")
    if tuple(int(part) for part in torch.split(".")[:2]) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise UserError(f"export needs torch {needed} or newer, and this is {torch}: pip install 'torch>={needed}'")
    if path.suffix not in SUFFIXES:
        raise UserError(f"cannot export to '{path}'; name a file that ends in .onnx, or in .pt2 for torch's own format")
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if path.suffix == ".onnx" and missing:
        raise UserError(
            f"export to .onnx needs {' and '.join(missing)}; install them by: pip install 'cs-models[export]'"
        )


def _write(program: ExportedProgram, path: Path, graph: str, facts: Mapping[str, object]) -> None:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            if path.suffix == ".onnx":
                _write_onnx(program, partial, graph, texts)
            else:
                _write_torch(program, partial, texts)
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot write '{path}': {reason}") from error


def _write_onnx(program: ExportedProgram, path: Path, graph: str, texts: Mapping[str, str]) -> None:
    import torch

    inputs, outputs = NAMES[graph]
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=inputs, output_names=outputs, external_data=False, verbose=False
    )
    assert onnx is not None
    onnx.model.metadata_props.update(texts)
    onnx.save(path)


def _write_torch(program: ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    import torch

    with path.open("wb") as file, warnings.catch_warnings():
        # Kernels of convolutions are kept with their channels last: whole, though torch takes them for parts.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, file, extra_files={f"{key}.txt": text for key, text in texts.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = CommandParser(
        prog="cs-models export",
        description="Write a trained unfolding network with its sampling matrix as two graphs, which run without "
        "cs-models: one measures images, the other reconstructs.",
        epilog="example: cs-models export r_coast --ratio 0.1 --out r_coast.onnx",
    )
    parser.add_argument("network", metavar="NETWORK", help="name of a shipped network, or a checkpoint's path")
    parser.add_argument("--ratio", type=float, required=True, help="CS ratio in (0, 1]")
    parser.add_argument("--out", required=True, metavar="FILE", help="FILE.onnx, or FILE.pt2 for torch.export's format")
    parser.add_argument("--operator", help="block sampling as for eval.py; by default what the network was trained for")
    parser.add_argument("--seed", type=int, default=0, help="of a random sampling matrix; 0 by default")
    try:
        options = parser.parse_args(arguments)
        paths = export(options.network, options.ratio, options.out, options.operator, options.seed)
    except UserError as error:
        return report(error)
    for path, purpose in zip(paths, ("reconstructs", "measures"), strict=True):
        print(f"{path}: {purpose}, {path.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
