"""Networks as graphs: ONNX Runtime and torch's own programs give what this package gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cs_models.cli.main import main as command
from cs_models.metrics import psnr
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.operators import make_operator
from cs_models.training.weights import save_checkpoint
from cs_models.zoo import export as exporting
from cs_models.zoo.graphs import Measure, Reconstruct
from cs_models.zoo.methods import load, zoo
from datamodules.catalog import load_set
from tests.test_networks import NETWORKS as SMALL

pytestmark = pytest.mark.skipif(torch.__version__ < exporting.OLDEST_TORCH, reason="export needs a newer torch")

NETWORKS = sorted(name for name in zoo() if not name.startswith("idm"))


def through_onnx(path: Path, **inputs: Tensor) -> Tensor:
    """What a graph of one output gives."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(output)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a checkpoint with two small layers and of a matrix for 8x8 blocks whose rows are not orthonormal."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    module = COASTModule(COASTConfig(layers=2, features=4, iterations_per_layer=(2, 1), modulation="rfmu"))
    np.save(folder / "phi.npy", np.random.default_rng(0).standard_normal((12, 64)) + 0.3)
    return str(save_checkpoint(module, folder / "tiny.safetensors")), str(folder / "phi.npy")


@pytest.mark.filterwarnings("error:No complete tensor found")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_graphs_of_a_small_network_at_any_size(suffix: str, tiny: tuple[str, str], tmp_path: Path) -> None:
    checkpoint, matrix = tiny
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    out = tmp_path / "new" / f"tiny{suffix}"
    assert command(["export", checkpoint, "--ratio", "0.1875", "--operator", matrix, "--out", str(out)]) == 0
    measuring = out.with_name(f"tiny_measure{suffix}")
    if suffix == ".onnx":
        facts = {entry.key: entry.value for entry in pytest.importorskip("onnx").load(out).metadata_props}
        assert json.loads(facts["settings"])["weights"] == load(checkpoint).settings()["weights"]
        assert json.loads(facts["operator"])["file"] == "phi.npy"
    programs = {} if suffix == ".onnx" else {path: torch.export.load(path).module() for path in (out, measuring)}
    network = load(checkpoint)
    for batch, height, width in ((1, 5, 30), (3, 16, 24), (2, 8, 8), (1, 33, 9)):
        operator = make_operator(matrix, 0.1875, (height, width))
        x = torch.rand(batch, 1, height, width)
        y, size = operator(x), torch.tensor([height, width])
        if suffix == ".onnx":
            measured, estimate = through_onnx(measuring, x=x), through_onnx(out, y=y, size=size)
        else:
            measured, estimate = programs[measuring](x), programs[out](y, size)
        torch.testing.assert_close(measured, y, rtol=0, atol=1e-5)
        torch.testing.assert_close(estimate, network.reconstruct(y, operator), rtol=0, atol=1e-4)


def test_graphs_hold_the_rows_of_their_ratio_alone() -> None:
    network = load("scnet_learned", 0.1)
    operator = network.default_operator(0.1, (33, 33))
    for graph in (Measure(operator), Reconstruct(network, operator)):
        assert graph.matrix.untyped_storage().nbytes() == graph.matrix.nbytes


def reconstructions(name: str, ratio: float, out: Path) -> tuple[Tensor, Tensor, Tensor]:
    """A part of a photograph, what a network makes of it, and what its graphs do."""
    pytest.importorskip("onnxscript")
    _, measuring = exporting.export(name, ratio, out)
    image = load_set("bundled")[0][1][None, :, 100:170, 100:150]
    network = load(name, ratio)
    operator = network.default_operator(ratio, (70, 50))
    y = through_onnx(measuring, x=image)
    return image, network.reconstruct(operator(image), operator), through_onnx(out, y=y, size=torch.tensor([70, 50]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_networks_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    image, ours, theirs = reconstructions(name, 0.1, tmp_path / f"{name}.onnx")
    assert psnr(ours, image).item() > 20
    assert psnr(theirs, image).item() == pytest.approx(psnr(ours, image).item(), abs=1e-3)


def test_a_network_whose_thresholds_are_means_over_the_image(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(SMALL["sodas_net"](), tmp_path / "small.safetensors")
    _, ours, theirs = reconstructions(str(checkpoint), 0.3, tmp_path / "small.onnx")
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("idm_small --ratio 0.1 --out a.onnx", "no unfolding network", marks=pytest.mark.slow),
        ("tv --ratio 0.1 --out a.onnx", "needs no training"),
        ("r_cost --ratio 0.1 --out a.onnx", "did you mean 'r_coast'?"),
        ("ista_net_plus --ratio 0.3 --out a.onnx", "there are none for ratio 0.3"),
        ("r_coast --ratio 10 --out a.onnx", "outside (0, 1]"),
        ("r_coast --ratio 0.1 --out a.pth", "ends in .onnx"),
        ("r_coast --ratio 0.1 --out a.onnx --operator pixel", "block sampling alone"),
        ("ista_net_plus --ratio 0.1 --out a.onnx --operator block", "trained for one matrix"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "PACKAGES", ())
    assert command(["export", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_old_torch_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(exporting, "OLDEST_TORCH", (99, 1))
    assert command(["export", "r_coast", "--ratio", "0.1", "--out", "a.onnx"]) == 2
    assert capsys.readouterr().err.startswith("error: export needs torch 99.1 or newer, and this is ")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(exporting, "PACKAGES", ("onnx_is_not_here",))
    assert command(["export", "r_coast", "--ratio", "0.1", "--out", "a.onnx"]) == 2
    assert "pip install 'cs-models[export]'" in capsys.readouterr().err
