"""The released weights, in our modules, give the figures that they give in the authors' code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from cs_models.errors import UserError
from cs_models.metrics import psnr, ssim
from cs_models.operators import make_operator
from cs_models.training.module import ReconstructionModule
from cs_models.zoo.checkpoints import load_checkpoint
from cs_models.zoo.import_official import import_official, main, read_released
from datamodules.catalog import load_set

FAMILY = {"R-COAST_5x4": "r_coast", "COAST_5_IPL1": "coast", "COAST_5_IPL4": "coast"}

# (golden entry, image): one or two small images of each; eval.py on the whole sets is in the README.
FAST = [
    ("ista_net_plus/Set11/1", "cameraman.tif"),
    ("ista_net_plus/Set11/10", "Monarch.tif"),
    ("ista_net_plus/Set11/30", "barbara.tif"),
    ("ista_net_plus/Set11/40", "house.tif"),
    ("ista_net_plus/CBSD68/10", "test_01.png"),
    ("ista_net/Set11/10", "Parrots.tif"),
    ("ista_net/Set11/30", "boats.tif"),
    ("ista_net/Set11/40", "foreman.tif"),
    ("ista_net_plus_mri/BrainMRI/10", "brain_test_01.png"),
    ("ista_net_plus_mri/BrainMRI/30", "brain_test_07.png"),
    ("ista_net_plus_mri/BrainMRI/50", "brain_test_02.png"),
    ("ista_net_pp/Set11/10/gauss_orth_rs0", "lena256.tif"),
    ("ista_net_pp/Set11/50/gauss_orth_rs0", "Monarch.tif"),
    ("ista_net_pp/Set11/30/phi0_mat", "peppers256.tif"),
    ("R-COAST_5x4/Set11/10", "barbara.tif"),
    ("R-COAST_5x4/Set11/50", "Parrots.tif"),
    ("COAST_5_IPL1/Set11/10", "foreman.tif"),
    ("COAST_5_IPL1/Set11/30", "cameraman.tif"),
    ("COAST_5_IPL4/Set11/10", "barbara.tif"),
    ("scnet/Set11/10", "Monarch.tif"),
    ("scnet/Set11/30", "house.tif"),
    ("scnet/Set11/50", "barbara.tif"),
    ("sodas_net/Set11/10", "Monarch.tif"),
    ("sodas_net/Set11/10", "house.tif"),
    ("opine_net_plus/Set11/10", "Monarch.tif"),
    ("opine_net_plus/Set11/10", "cameraman.tif"),
]


@pytest.fixture(scope="module")
def golden(real_data: Path) -> dict[str, dict]:
    paths = [real_data.parent / name for name in ("golden.json", "golden_beyond.json")]
    if not all(path.is_file() for path in paths) or not (real_data / "official").is_dir():
        pytest.skip("needs golden.json and golden_beyond.json beside, and official/ inside, the data folder")
    first, second = (json.loads(path.read_text()) for path in paths)
    return first | second


def imported(entry: str, facts: dict, data: Path) -> ReconstructionModule:
    name = entry.split("/")[0]
    if name == "opine_net_plus":
        return import_official(name, data / facts["weights"])
    files = [data / "official/sampling_matrix" / Path(part.strip()).name for part in facts["matrix"].split("+")]
    source = data / facts["weights"]
    if name == "ista_net_plus_mri":
        return import_official(name, source, mask=files[0])
    if name in ("ista_net", "ista_net_plus"):
        return import_official(name, source, phi=files[:1], qinit=files[1])
    schedule = (4,) * 5 if name == "COAST_5_IPL4" else None
    return import_official(FAMILY.get(name, name), source, phi=files, iterations_per_layer=schedule)


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "image"), FAST, ids=lambda value: value)
def test_golden_figures(golden: dict[str, dict], real_data: Path, entry: str, image: str) -> None:
    facts = golden[entry]
    module = imported(entry, facts, real_data)
    x = dict(iter(load_set(entry.split("/")[1], str(real_data))))[Path(image).stem][None]
    operator = module.default_operator(facts["ratio_percent"] / 100, (x.shape[-2], x.shape[-1]))
    estimate = module.reconstruct(operator(x), operator).clamp(0, 1)
    expected_psnr, expected_ssim = facts["per_image"][image]
    assert psnr(estimate, x).item() == pytest.approx(expected_psnr, abs=0.005)
    assert ssim(estimate, x).item() == pytest.approx(expected_ssim, abs=2e-4)


def test_condition_module_gives_the_released_numbers(golden: dict[str, dict], real_data: Path) -> None:
    module = import_official("ista_net_pp", real_data / "official/ista_net_pp/net_params_401.pkl")
    expected = {
        0.1: ([0.7252, 6.7578, 4.6834, 2.0192], [0.1201, 0.2252, 0.1792, 0.0705]),
        0.5: ([0.6340, 3.5730, 2.5887, 1.2545], [0.2302, 0.5050, 0.3978, 0.1159]),
    }
    for ratio, (steps, sigmas) in expected.items():
        with torch.no_grad():
            numbers = module.network.condition(ratio).view(2, 20)[:, [0, 1, 2, 19]]
        torch.testing.assert_close(numbers, torch.tensor([steps, sigmas]), atol=1e-4, rtol=0)


def test_command_line(golden: dict[str, dict], real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    official = real_data / "official"
    out = tmp_path / "net.safetensors"
    matrices = official / "sampling_matrix"
    status = main(
        ["ista_net_plus", str(official / "ista_net_plus/ratio_10_net_params_200.pkl"),
         "--phi", str(matrices / "phi_0_10_1089.mat"), "--qinit", str(matrices / "Initialization_Matrix_10.mat"),
         "--out", str(out)]
    )  # fmt: skip
    assert status == 0
    assert "336,978 parameters; carries sampling for ratio 0.1" in capsys.readouterr().out
    module = load_checkpoint(out)
    assert set(module.provenance) == {"imported", "source", "phi_phi_0_10_1089.mat", "qinit"}
    assert all(len(module.provenance[key]["sha256"]) == 64 for key in module.provenance if key != "imported")
    operator = module.default_operator(0.1, (40, 40))
    assert module.reconstruct(operator(torch.rand(1, 1, 40, 40)), operator).isfinite().all()


def test_without_its_matrix_it_imports_and_says_what_is_missing(
    golden: dict[str, dict], real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "net.safetensors"
    source = real_data / "official/ista_net_plus/ratio_50_net_params_200.pkl"
    assert main(["ista_net_plus", str(source), "--out", str(out)]) == 0
    assert "--phi and --qinit" in capsys.readouterr().err
    module = load_checkpoint(out)
    with pytest.raises(UserError, match="import it again with --phi and --qinit"):
        module.default_operator(0.5, (33, 33))
    operator = make_operator("block", 0.5, (33, 33))
    with pytest.raises(UserError, match="carries no sampling matrix"):
        module.reconstruct(operator(torch.rand(1, 1, 33, 33)), operator)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    target, path = tmp_path / "owned", tmp_path / "weights.pkl"
    if zipped:
        torch.save({"module.fcs.0.lambda_step": Malicious(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(UserError) as caught:
        read_released(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)


def test_a_released_scnet_is_numbered_through(tmp_path: Path) -> None:
    """Head, stages and tail are one list, so a stage more moves the tail."""
    state = {"body.0.weight": torch.rand(32, 2, 3, 3), "body.3.weight": torch.rand(1, 32, 3, 3)}
    state |= {f"body.{i}.body.{j}.weight": torch.rand(32, 32, 3, 3) for i in (1, 2) for j in (0, 2)}
    state |= {key.replace("weight", "bias"): torch.rand(len(value)) for key, value in state.items()}
    torch.save(state, tmp_path / "weights.pkl")
    network = import_official("scnet", tmp_path / "weights.pkl").network
    assert torch.equal(network.tail.weight, state["body.3.weight"])
    assert torch.equal(network.layers[1].conv2.bias, state["body.2.body.2.bias"])
    del state["body.0.bias"]
    torch.save(state, tmp_path / "weights.pkl")
    with pytest.raises(UserError, match=r"weights of scnet: 1 missing \(head.bias\)"):
        import_official("scnet", tmp_path / "weights.pkl")


@pytest.mark.parametrize(
    ("rows", "ratio"), [(10, 0.01), (43, 0.04), (109, 0.1), (272, 0.25), (545, 0.5), (3, 3 / 1089)]
)
def test_a_released_opine_net_brings_its_matrix(
    tmp_path: Path, capsys: pytest.CaptureFixture, rows: int, ratio: float
) -> None:
    """It samples at the ratio that papers name, whichever way they rounded its number of rows."""
    shapes = {f"conv{i}_{way}": (32, 32, 3, 3) for i in (1, 2) for way in ("forward", "backward", "G")}
    shapes |= {"conv_D": (32, 1, 3, 3), "conv3_G": (1, 32, 3, 3), "lambda_step": (1,), "soft_thr": (1,)}
    state = {f"module.fcs.0.{key}": torch.rand(shape) for key, shape in shapes.items()}
    state |= {"module.Phi": torch.randn(rows, 1089), "module.Phi_scale": torch.tensor([0.03])}
    torch.save(state, tmp_path / "weights.pkl")
    out = tmp_path / "net.safetensors"
    assert main(["opine_net_plus", str(tmp_path / "weights.pkl"), "--out", str(out)]) == 0
    assert f"carries sampling for ratio {ratio:g}" in capsys.readouterr().out
    operator = load_checkpoint(out).default_operator(ratio, (33, 33))
    torch.testing.assert_close(operator.matrix, 0.03 * state["module.Phi"].sign())


def released_ista_net_plus(layers: int = 9) -> dict[str, torch.Tensor]:
    shapes = {"lambda_step": (1,), "soft_thr": (1,), "conv_D": (32, 1, 3, 3), "conv_G": (1, 32, 3, 3)}
    shapes |= {f"conv{i}_{way}": (32, 32, 3, 3) for i in (1, 2) for way in ("forward", "backward")}
    return {f"module.fcs.{i}.{key}": torch.rand(shape) for i in range(layers) for key, shape in shapes.items()}


def test_wrapping_dictionary_and_prefix(tmp_path: Path) -> None:
    state = released_ista_net_plus()
    torch.save(state, tmp_path / "bare.pkl")
    torch.save(
        {"model": {key.removeprefix("module."): value for key, value in state.items()}}, tmp_path / "wrapped.pkl"
    )
    bare, wrapped = (import_official("ista_net_plus", tmp_path / name) for name in ("bare.pkl", "wrapped.pkl"))
    assert torch.equal(bare.network.layers[3].forward2.weight, state["module.fcs.3.conv2_forward"])
    for ours, theirs in zip(bare.network.parameters(), wrapped.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("truncated", "cannot read"),
        ("other model", "these are not the weights of coast"),
        ("missing key", r"1 missing \(layers.2.threshold\)"),
        ("extra key", r"1 unexpected \(surplus\)"),
        ("shape", r"1 misshapen \(layers.0.extract.weight\)"),
        ("no tensors", "no dictionary of tensors"),
        ("absent", "not found"),
        ("mat without key", "has no variable 'phi'"),
        ("shapes disagree", "transposed shape"),
        ("complex matrix", "expected a real matrix"),
        ("no start", "give --qinit with --phi"),
        ("unknown model", "unknown model"),
        ("matrix of its own", "leave out --phi"),
        ("two matrices", "give --phi once"),
    ],
)
def test_bad_files(tmp_path: Path, case: str, message: str) -> None:
    state: dict = released_ista_net_plus()
    model, options = "ista_net_plus", dict[str, Any]()
    if case == "other model":
        model = "coast"
    elif case == "unknown model":
        model = "resnet"
    elif case == "missing key":
        del state["module.fcs.2.soft_thr"]
    elif case == "extra key":
        state["surplus"] = torch.zeros(1)
    elif case == "shape":
        state["module.fcs.0.conv_D"] = torch.zeros(16, 1, 3, 3)
    elif case == "no tensors":
        state = {"epoch": 3}
    elif case == "mat without key":
        savemat(tmp_path / "phi.mat", {"a": np.eye(2), "b": np.eye(2)})
        savemat(tmp_path / "q.mat", {"Qinit": np.random.randn(1089, 109)})
        options = {"phi": [tmp_path / "phi.mat"], "qinit": tmp_path / "q.mat"}
    elif case == "shapes disagree":
        savemat(tmp_path / "phi.mat", {"phi": np.random.randn(109, 1089)})
        savemat(tmp_path / "q.mat", {"Qinit": np.random.randn(1089, 218)})
        options = {"phi": [tmp_path / "phi.mat"], "qinit": tmp_path / "q.mat"}
    elif case == "complex matrix":
        np.save(tmp_path / "phi.npy", np.ones((109, 1089)) * 1j)
        savemat(tmp_path / "q.mat", {"Qinit": np.random.randn(1089, 109)})
        options = {"phi": [tmp_path / "phi.npy"], "qinit": tmp_path / "q.mat"}
    elif case in ("matrix of its own", "two matrices"):
        model = "opine_net_plus" if case == "matrix of its own" else "sodas_net"
        options = {"phi": [tmp_path / "phi.npy"] * 2}
    elif case == "no start":
        np.save(tmp_path / "phi.npy", np.ones((109, 1089)))
        options = {"phi": [tmp_path / "phi.npy"]}
    path = tmp_path / "weights.pkl"
    torch.save(state, path)
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:20_000])
    if case == "absent":
        path = tmp_path / "absent.pkl"
    with pytest.raises(UserError, match=message) as caught:
        import_official(model, path, **options)
    assert "\n" not in str(caught.value)
