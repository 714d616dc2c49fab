from __future__ import annotations

import csv

import pytest
import skimage.data
import torch
from PIL import Image

from cs_models.cli import evaluate as evaluation


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """A comparison of two small images."""
    folder = tmp_path_factory.mktemp("images")
    photograph = skimage.data.camera()
    for name, corner in (("a", 100), ("b", 250)):
        Image.fromarray(photograph[corner : corner + 66, 150:216]).save(folder / f"{name}.png")
    return ["--methods", "pinv,backprojection", "--datasets", str(folder), "--ratios", "0.5"]


@pytest.mark.slow
def test_lpips_with_weights_from_a_file(tmp_path, arguments):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    weights = tmp_path / "alexnet.pth"
    torch.save(alexnet().state_dict(), weights)
    hub = torch.hub.get_dir()
    assert evaluation.main([*arguments, "--lpips", str(weights), "--out", str(tmp_path / "out")]) == 0
    assert torch.hub.get_dir() == hub
    with (tmp_path / "out/perceptual.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {row["images"] for row in rows.values()} == {"2"}
    assert float(rows["pinv"]["lpips"]) > 0
    assert "fid" not in rows["pinv"]
    assert "Perceptual metrics" in (tmp_path / "out/report.md").read_text()


@pytest.mark.slow
def test_fid_with_weights_from_a_file(tmp_path, monkeypatch, arguments):
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    weights = tmp_path / "inception.pth"
    with monkeypatch.context() as random_weights:
        torch.manual_seed(0)
        random_weights.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        random_weights.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        extractor = inception.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(extractor.state_dict(), weights)
    # The eigenvalues of a 2048 x 2048 matrix may take a minute; the distance of the means is as good a witness.
    monkeypatch.setattr("torchmetrics.image.fid._compute_fid", lambda mean, _, other, __: (mean - other).square().sum())
    assert evaluation.main([*arguments, "--fid", str(weights), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out/perceptual.csv").open() as file:
        assert all(float(row["fid"]) > 0 for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--lpips", None, "no file"),
        ("--fid", None, "no file"),
        ("--lpips", b"no weights", "cannot read"),
        ("--lpips", {"features.0.weight": torch.zeros(2)}, "the other results are complete"),
    ],
)
def test_unusable_weights_are_one_line(tmp_path, arguments, capsys, option, content, words):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    assert evaluation.main([*arguments, option, str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_perceptual_metrics_need_originals(tmp_path, capsys):
    words = ["--methods", "pinv", "--measurements", "y.npy", "--shape", "9,9", "--operator", "phi.npy"]
    assert evaluation.main([*words, "--lpips", "w.pth", "--out", str(tmp_path)]) == 2
    assert "compare with originals" in capsys.readouterr().err
