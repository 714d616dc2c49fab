"""Released checkpoints of the papers' authors, turned into ours.

``python -m cs_models.import_official MODEL SOURCE [--phi F.mat] [--qinit F.mat] [--mask F.mat] --out F``
"""

from __future__ import annotations

import _codecs
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cs_models.errors import CommandParser, UserError, report
from cs_models.files import is_file
from cs_models.networks.learned_sampling.network import LearnedSamplingModule, learned_sampling
from cs_models.networks.learned_sampling.opine_net import OPINENetConfig, OPINENetModule
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANetConfig, ISTANetModule
from cs_models.networks.unfolding.ista_net_pp import ISTANetPPConfig, ISTANetPPModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.one_matrix import OneMatrixModule
from cs_models.networks.unfolding.scnet import SCNetConfig, SCNetModule
from cs_models.networks.unfolding.sodas_net import SODASNetConfig, SODASNetModule
from cs_models.operators import Sampling
from cs_models.operators.carried import CarriedSampling
from cs_models.operators.matrices import file_source, load_matrix, rows_for_ratio
from cs_models.training.module import ReconstructionModule
from cs_models.training.torch_files import check_tensor, read_torch_file
from cs_models.training.weights import check_weights, save_checkpoint

MODELS = (
    "ista_net", "ista_net_plus", "ista_net_plus_mri", "ista_net_pp", "coast", "r_coast", "scnet", "sodas_net",
    "opine_net_plus", "idm",
)  # fmt: skip

# All that the released files need beyond tensors: their last training loss is a numpy scalar.
ALLOWED_GLOBALS: list[Any] = [
    (np.empty(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    _codecs.encode,
]

# What released files store with shape [1]; ours are scalars.
SCALARS = ("step_size", "threshold", "scale")

# Released names on the left, ours on the right; {0}, {1} are the numbers in the released name.
ISTA_NET_NAMES = {
    r"fcs\.(\d+)\.lambda_step": "layers.{0}.step_size",
    r"fcs\.(\d+)\.soft_thr": "layers.{0}.threshold",
    r"fcs\.(\d+)\.conv_D": "layers.{0}.extract.weight",
    r"fcs\.(\d+)\.conv([12])_(forward|backward)": "layers.{0}.{2}{1}.weight",
    r"fcs\.(\d+)\.conv_G": "layers.{0}.gather.weight",
}
RESIDUAL_NAMES = {
    r"fcs\.(\d+)\.(head|tail)_conv\.(weight|bias)": "layers.{0}.{1}.{2}",
    r"fcs\.(\d+)\.ResidualBlocks\.(\d+)\.(conv[12]\.(?:weight|bias))": "layers.{0}.blocks.{1}.{2}",
}
ISTA_NET_PP_NAMES = RESIDUAL_NAMES | {
    r"condition\.fc1\.(weight|bias)": "condition.layers.0.{0}",
    r"condition\.fc2\.(weight|bias)": "condition.layers.2.{0}",
    r"condition\.fc3\.(weight|bias)": "condition.layers.4.{0}",
}
SODAS_NET_NAMES = ISTA_NET_NAMES | {r"fe\.(weight|bias)": "head.{0}"}
OPINE_NET_NAMES = ISTA_NET_NAMES | {
    r"fcs\.(\d+)\.conv1_G": "layers.{0}.gather.1.weight",
    r"fcs\.(\d+)\.conv2_G": "layers.{0}.gather.3.weight",
    r"fcs\.(\d+)\.conv3_G": "layers.{0}.gather.4.weight",
    r"Phi": "sampling.weight",
    r"Phi_scale": "sampling.scale",
}
# The modulation unit is shared by all blocks; released files store it once for each.
COAST_NAMES = RESIDUAL_NAMES | {
    r"fcs\.(\d+)\.lambda_step": "layers.{0}.step_size",
    r"fcs\.\d+\.ResidualBlocks\.\d+\.res_scale\.(weight|bias)": "modulation.linear.{0}",
    r"fcs\.\d+\.ResidualBlocks\.\d+\.res_scale\.([02]\.(?:weight|bias))": "modulation.layers.{0}",
}


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released file, without running code from it.

    A wrapping dictionary with an entry `model` or `state_dict` and the prefix ``module.`` are taken off.

    Raises:
        UserError: if the file is missing, truncated, holds code, or holds no tensors.
    """
    if not is_file(path):
        raise UserError(f"released checkpoint not found: {path}")
    with torch.serialization.safe_globals(ALLOWED_GLOBALS):
        content = read_torch_file(path, old=True)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    try:
        if not isinstance(content, dict) or not content:
            raise UserError(f"it is of type {type(content).__name__}")
        for key, value in content.items():
            check_tensor(key, value)
    except UserError as error:
        known = ", ".join(MODELS)
        raise UserError(f"{path} holds no dictionary of tensors: {error}; expected weights of one of {known}") from None
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def rename(state: dict[str, Tensor], names: dict[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the released names that have none.

    Raises:
        UserError: if copies of a shared tensor differ.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        for pattern, ours in names.items():
            match = re.fullmatch(pattern, key)
            if match:
                name = ours.format(*match.groups())
                if value.shape == (1,) and name.endswith(SCALARS):
                    value = value.reshape(())
                if name in renamed and not torch.equal(renamed[name], value):
                    raise UserError(f"{key} differs from other copies of the unit that all blocks share")
                renamed[name] = value
                break
        else:
            unknown.append(key)
    return renamed, unknown


def import_official(
    model: str,
    source: str | Path,
    phi: Sequence[str | Path] = (),
    qinit: str | Path | None = None,
    mask: str | Path | None = None,
    iterations_per_layer: Sequence[int] | None = None,
) -> ReconstructionModule:
    """A module with released weights.

    Args:
        model: one of `MODELS`.
        source: the released file.
        phi: `.mat` (key `phi`) or `.npy` files with block sampling matrices that the checkpoint shall carry.
        qinit: `.mat` file (key `Qinit`) with the linear start of ISTA-Net(+).
        mask: `.mat` file (key `mask_matrix`) with the sampling mask of the MRI variant.
        iterations_per_layer: schedule of COAST's family; for `r_coast` by default 20 iterations in all.

    Raises:
        UserError: if a file cannot be read, or keys are missing, unexpected or of another shape.
    """
    if model not in MODELS:
        raise UserError(f"unknown model '{model}'; choose from {', '.join(MODELS)}")
    state = read_released(source)
    if model == "idm":
        from cs_models.zoo.import_idm import import_idm_state

        module: ReconstructionModule = import_idm_state(state)
    elif model == "scnet":
        module = _scnet(state)
    elif model == "sodas_net":
        module = _sodas_net(state, phi)
    elif model == "opine_net_plus":
        module = _opine_net_plus(state, phi)
    elif model.startswith("ista_net") and model != "ista_net_pp":
        module = _ista_net(model, state, phi, qinit, mask)
    else:
        module = _flexible(model, state, iterations_per_layer)
    matrices = {f"phi_{Path(path).name}": path for path in phi}
    for path in matrices.values():
        module.carried.add_matrix(load_matrix(path, "phi"))
    extra = {"qinit": qinit, "mask": mask}
    module.provenance = {"imported": model, "source": file_source(source)} | {
        key: file_source(path) for key, path in (matrices | extra).items() if path is not None
    }
    return module.eval()


def _layers(state: dict[str, Tensor], name: str = "fcs") -> int:
    """How many parts of a network ``name.0``, ``name.1``, ... are numbered."""
    found = [int(match.group(1)) for match in (re.match(rf"{name}\.(\d+)\.", key) for key in state) if match]
    return max(found, default=-1) + 1


def _fill(module: ReconstructionModule, state: dict[str, Tensor], names: dict[str, str], model: str) -> None:
    renamed, unknown = rename(state, names)
    own = {key: value for key, value in module.network.state_dict().items() if key != "q_init"}
    check_weights(own, renamed, f"these are not the weights of {model}", unknown)
    module.network.load_state_dict(renamed, strict=False)


def _ista_net(
    model: str,
    state: dict[str, Tensor],
    phi: Sequence[str | Path],
    qinit: str | Path | None,
    mask: str | Path | None,
) -> ReconstructionModule:
    variant: Literal["basic", "plus"] = "basic" if model == "ista_net" else "plus"
    layers = max(1, _layers(state))
    if model == "ista_net_plus_mri":
        config = ISTANetConfig(variant=variant, layers=layers, start="adjoint")
        module = ISTANetModule(config, UnfoldingTraining(Sampling(ratios=(0.1,), kind="fourier")))
        _fill(module, state, ISTA_NET_NAMES, model)
        if mask is not None:
            module.carried.add_mask(load_matrix(mask, "mask_matrix"))
        return module
    if len(phi) > 1:
        raise UserError(f"{model} works with one matrix, got {len(phi)}; give --phi once")
    if phi and qinit is None:
        raise UserError(f"{model} starts from Q_init y: give --qinit with --phi, or neither for the weights alone")
    start = None if qinit is None else load_matrix(qinit, "Qinit")
    rows, n = (0, 1089) if start is None else (start.shape[1], start.shape[0])
    if start is not None and phi:
        shape = tuple(load_matrix(phi[0], "phi").shape)
        if shape != (rows, n):
            raise UserError(f"--phi is {shape[0]}x{shape[1]} and --qinit {n}x{rows}; Q_init has the transposed shape")
    config = ISTANetConfig(variant=variant, layers=layers, rows=rows)
    module = ISTANetModule(config, UnfoldingTraining(Sampling(ratios=(max(rows, 1) / n,))))
    _fill(module, state, ISTA_NET_NAMES, model)
    if start is not None:
        module.network.q_init = start.float()
    return module


def _flexible(model: str, state: dict[str, Tensor], iterations_per_layer: Sequence[int] | None) -> ReconstructionModule:
    layers = max(1, _layers(state))
    if model == "ista_net_pp":
        module: ReconstructionModule = ISTANetPPModule(ISTANetPPConfig(layers=layers))
        _fill(module, state, ISTA_NET_PP_NAMES, model)
        return module
    if iterations_per_layer is None:
        iterations_per_layer = (max(1, 20 // layers) if model == "r_coast" else 1,) * layers
    config = COASTConfig(
        layers=layers,
        iterations_per_layer=tuple(iterations_per_layer),
        modulation="rfmu" if model == "r_coast" else "fmu",
    )
    module = COASTModule(config)
    _fill(module, state, COAST_NAMES, model)
    return module


def _scnet(state: dict[str, Tensor]) -> ReconstructionModule:
    """SCNet, whose released parts are numbered through: head, stages, tail."""
    layers = max(1, _layers(state, "body") - 2)
    names = {
        r"body\.0\.(weight|bias)": "head.{0}",
        rf"body\.{layers + 1}\.(weight|bias)": "tail.{0}",
    }
    for layer in range(layers):
        for place, ours in ((0, "conv1"), (2, "conv2")):
            names[rf"body\.{layer + 1}\.body\.{place}\.(weight|bias)"] = f"layers.{layer}.{ours}.{{0}}"
    module = SCNetModule(SCNetConfig(layers=layers))
    _fill(module, state, names, "scnet")
    return module


def _sodas_net(state: dict[str, Tensor], phi: Sequence[str | Path]) -> ReconstructionModule:
    if len(phi) > 1:
        raise UserError(f"sodas_net works with one matrix, got {len(phi)}; give --phi once")
    rows, n = load_matrix(phi[0], "phi").shape if phi else (109, 1089)
    config = SODASNetConfig(layers=max(1, _layers(state)))
    module = SODASNetModule(config, UnfoldingTraining(Sampling(ratios=(rows / n,))))
    # In place of the one that it would be trained with here.
    module.carried = CarriedSampling()
    _fill(module, state, SODAS_NET_NAMES, "sodas_net")
    return module


def _opine_net_plus(state: dict[str, Tensor], phi: Sequence[str | Path]) -> ReconstructionModule:
    if phi:
        raise UserError("opine_net_plus learned its matrix, which is among its weights; leave out --phi")
    matrix = state.get("Phi")
    rows, n = (109, 1089) if matrix is None or matrix.ndim != 2 else matrix.shape
    sampling = Sampling(ratios=(nominal_ratio(rows, n),), block_size=math.isqrt(n))
    module = OPINENetModule(OPINENetConfig(layers=max(1, _layers(state)), rows=rows), UnfoldingTraining(sampling))
    _fill(module, state, OPINE_NET_NAMES, "opine_net_plus")
    return module


def nominal_ratio(rows: int, n: int) -> float:
    """The whole percentage that M of N stand for, as papers name ratios, or M / N where none is near."""
    percent = round(100 * rows / n) / 100
    return percent if percent and abs(rows_for_ratio(percent, n) - rows) <= 1 else rows / n


def _sampled_ratios(module: ReconstructionModule) -> list[float]:
    """The ratios whose sampling an imported network brings along."""
    if isinstance(module, LearnedSamplingModule):
        return [learned_sampling(module.network).ratio]
    return module.carried.ratios()


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = CommandParser(
        prog="python -m cs_models.import_official",
        description="Turn a released checkpoint into a .safetensors file that eval.py takes.",
        epilog="example: python -m cs_models.import_official ista_net_plus net_params_200.pkl "
        "--phi phi_0_10_1089.mat --qinit Initialization_Matrix_10.mat --out ista_net_plus_10.safetensors",
    )
    parser.add_argument("model", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("source", metavar="SOURCE", help="the released file")
    parser.add_argument("--phi", action="append", default=[], help="sampling matrix to carry; may be repeated")
    parser.add_argument("--qinit", help="linear start of ISTA-Net(+)")
    parser.add_argument("--mask", help="sampling mask of the MRI variant")
    parser.add_argument("--iterations_per_layer", type=_counts, help="schedule of coast and r_coast, as 4,4,4,4,4")
    parser.add_argument("--out", required=True, help="the .safetensors file to write")
    try:
        options = parser.parse_args(arguments)
        module = import_official(
            options.model, options.source, options.phi, options.qinit, options.mask, options.iterations_per_layer
        )
        path = save_checkpoint(module, options.out)
    except UserError as error:
        return report(error)
    parameters = sum(parameter.numel() for parameter in module.network.parameters())
    ratios = ", ".join(f"{ratio:g}" for ratio in _sampled_ratios(module))
    print(f"{path}: {parameters:,} parameters; carries sampling for ratio {ratios or '(none)'}")
    if isinstance(module, OneMatrixModule) and not ratios:
        needed = "--mask" if options.model == "ista_net_plus_mri" else module.imported_with
        print(f"note: without its own sampling ({needed}) it cannot be evaluated", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
