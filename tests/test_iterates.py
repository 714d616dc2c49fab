"""The command that shows a reconstruction iteration by iteration."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cs_models.evaluation.iterates import main
from cs_models.training.weights import save_checkpoint
from tests.test_networks import NETWORKS


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.add.outer(np.arange(20), np.arange(17)) * 6
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_curve_and_strip(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = save_checkpoint(NETWORKS["r_coast"](), tmp_path / "net.safetensors")
    words = [str(network), "--image", str(picture), "--ratio", "0.3", "--out", str(tmp_path / "out")]
    assert main([*words, "--iterations_per_layer", "4,5"]) == 0
    with open(tmp_path / "out/iterates.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == [str(number) for number in range(1, 10)]
    assert f"{float(rows[-1]['psnr_db']):.2f} dB after 9" in capsys.readouterr().out
    for name in ("psnr_per_iteration.png", "iterates.png"):
        assert Image.open(tmp_path / "out" / name).size[0] > 300


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["clomp"], "give an unfolding network"),
        (["r_cost"], "unknown method"),
        (["NET", "--iterations_per_layer", "4"], "this network has 2"),
        (["NET", "--ratio", "2"], "outside (0, 1]"),
        (["NET", "--out", "TAKEN"], "cannot write into"),
    ],
)
def test_mistakes(
    words: list[str], expected: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    network = save_checkpoint(NETWORKS["r_coast"](), tmp_path / "net.safetensors")
    places = {"NET": str(network), "TAKEN": str(picture)}
    assert main([*(places.get(word, word) for word in words), "--image", str(picture)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1
