"""What a user's matrix or mask is taken for, what it really measures, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cs_models.cli.evaluate import main
from cs_models.errors import UserError
from cs_models.evaluation.results import ResultsFile
from cs_models.operators import (
    BlockOperator,
    ColumnOperator,
    FourierOperator,
    MeasurementOperator,
    PixelOperator,
    make_operator,
)
from cs_models.zoo.methods import load

RANDOM = np.random.RandomState(0)
MASK = np.zeros((16, 16))
MASK[:4, :4] = 1  # 1/16, the lowest frequencies among them


def save(folder: Path, matrix: np.ndarray) -> str:
    path = folder / "a.npy"
    np.save(path, matrix)
    return str(path)


@pytest.mark.parametrize(
    ("matrix", "size", "ratio", "word", "expected"),
    [
        (MASK, (16, 16), 1 / 16, "", FourierOperator),
        (255 * MASK, (16, 16), 1 / 16, "", FourierOperator),
        (MASK, (16, 16), 1 / 16, "fourier:", FourierOperator),
        (MASK, (16, 16), 1 / 16, "pixel:", PixelOperator),
        (RANDOM.randn(2, 16), (20, 20), 1 / 8, "", BlockOperator),
        (RANDOM.randn(2, 18), (18, 20), 1 / 9, "", ColumnOperator),
        (RANDOM.randn(2, 16), (16, 20), 1 / 8, "block:", BlockOperator),
        (RANDOM.randn(2, 16), (16, 20), 1 / 8, "column:", ColumnOperator),
        (RANDOM.randint(0, 2, (4, 16)), (20, 20), 1 / 4, "", BlockOperator),
    ],
)
def test_what_a_file_holds(
    matrix: np.ndarray,
    size: tuple[int, int],
    ratio: float,
    word: str,
    expected: type[MeasurementOperator],
    tmp_path: Path,
) -> None:
    operator = make_operator(word + save(tmp_path, matrix), ratio, size)
    assert type(operator) is expected
    assert operator.measured_ratio == pytest.approx(ratio)
    x = torch.rand(1, 1, *size)
    y = operator(x)
    torch.testing.assert_close(operator(operator.pinv(y)), y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "size", "ratio", "word", "message"),
    [
        (
            RANDOM.randn(2, 16),
            (16, 20),
            1 / 8,
            "",
            "2x16, which may be read in several ways.*column:FILE or block:FILE",
        ),
        (np.eye(16), (16, 16), 0.5, "", "may be read in several ways; say which one: fourier:FILE or pixel:FILE or"),
        (RANDOM.randn(2, 15), (16, 16), 1 / 8, "", "2x15 and fits no way of measuring 16x16 images"),
        (RANDOM.randn(80, 64), (16, 16), 1, "", "80x64; a sampling matrix has more columns than rows"),
        (RANDOM.randn(2, 15), (16, 16), 1 / 8, "block:", "2x15; block:FILE takes a matrix with B"),
        (RANDOM.randn(2, 16), (20, 20), 1 / 8, "column:", "2x16; column:FILE takes a matrix with as many columns"),
        (RANDOM.randn(16, 16), (16, 16), 1 / 16, "fourier:", "16x16; fourier:FILE takes a mask of the image's size"),
        (MASK, (20, 20), 1 / 16, "pixel:", "16x16; pixel:FILE takes a mask of the image's size, for 20x20 images"),
        (MASK, (16, 16), 0.3, "pixel:", "measures 6.25 %, not 30 %; give --ratios 0.0625"),
        (MASK, (16, 16), 0.9, "fourier:", "measures 6.25 %, not 90 %; give --ratios 0.0625"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    matrix: np.ndarray, size: tuple[int, int], ratio: float, word: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_operator(word + save(tmp_path, matrix), ratio, size)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("shifted", [False, True])
def test_a_mask_without_the_mean_is_warned_of(shifted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.fft.fftshift(MASK) if shifted else MASK
    with caplog.at_level(logging.WARNING):
        make_operator(save(tmp_path, mask), 1 / 16, (16, 16))
    assert ["ifftshift" in record.getMessage() for record in caplog.records] == [True] * shifted


@pytest.mark.parametrize(
    ("words", "ratio", "measured"),
    [("block:8", 0.1, 6 / 64), ("block:1", 0.1, 1.0), ("structured:2", 0.1, 0.25), ("column", 0.3, 4 / 16)],
)
def test_what_is_really_measured(words: str, ratio: float, measured: float) -> None:
    assert make_operator(words, ratio, (16, 16)).measured_ratio == pytest.approx(measured)


@pytest.mark.parametrize("words", ["pixel", "transform2d", "radial", "cartesian", "radon"])
def test_operators_on_whole_images_count_their_measurements(words: str) -> None:
    operator = make_operator(words, 0.3, (24, 20))
    count = operator(torch.zeros(1, 1, 24, 20)).numel()
    assert operator.measured_ratio == count / (24 * 20)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    Image.fromarray(RANDOM.randint(0, 255, (16, 16)).astype(np.uint8)).save(tmp_path / "tiny/a.png")
    return tmp_path / "tiny"


def test_rows_and_tables_say_what_was_measured(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--methods", "pinv", "--datasets", str(images), "--ratios", "0.1,0.25", "--operator", "structured:2"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    rows = ResultsFile(tmp_path / "out").rows()
    assert [row.measured_ratio for row in rows] == [0.25, 0.25]
    assert "structured:2 (measures 0.25 at 0.1, 0.25 at 0.25)" in capsys.readouterr().out
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "structured:2 measures 0.25 of the pixels where 0.1 were asked for; the results say so"


@pytest.mark.parametrize(
    ("method", "operator", "warnings"),
    [
        ("scnet_pca", "block", 1),
        ("scnet_pca", "block:pca", 0),
        ("scnet_learned", "structured", 1),
        ("scnet_learned", "rows.npy", 0),
        ("scnet", "structured", 0),
    ],
)
def test_networks_with_rows_of_their_own_say_when_they_meet_others(
    method: str, operator: str, warnings: int, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if operator == "rows.npy":
        own = load(method).default_operator(0.25, (16, 16))
        assert isinstance(own, BlockOperator)
        operator = save(tmp_path, own.matrix.numpy())
    words = ["--methods", method, "--datasets", str(images), "--ratios", "0.25", "--operator", operator]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    messages = [record.getMessage() for record in caplog.records if "was trained on" in record.getMessage()]
    assert [message.startswith(f"{method} was trained on rows of its own") for message in messages] == [True] * warnings


def test_several_seeds_with_a_file_need_noise(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    matrix = save(tmp_path, RANDOM.randn(8, 64))
    words = ["--methods", "pinv", "--datasets", str(images), "--ratios", "0.125", "--operator", matrix]
    words += ["--seeds", "0,1", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--seeds draws nothing with a matrix from a file" in capsys.readouterr().err
    assert main([*words, "--noise", "5"]) == 0
    assert len({row.psnr_db for row in ResultsFile(tmp_path / "out").rows()}) == 2
