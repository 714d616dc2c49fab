"""1-D signals in the benchmark and the CLOMP paper's grids: rows, reruns, mixtures with images, mistakes."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft

from cs_models.cli.evaluate import main
from cs_models.metrics import pcc, ssim_1d
from cs_models.networks.unfolding.ista_net_pp import ISTANetPPConfig, ISTANetPPModule
from cs_models.training.weights import save_checkpoint
from tests.conftest import REPOSITORY

CONTRACT = "method,dataset,image,ratio,seed,psnr_db,ssim,seconds,device,operator,run_key"
N = 64


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three signals of which the DCT keeps few coefficients, in a folder with a set of one picture."""
    random = np.random.default_rng(0)
    spectra = np.zeros((3, N))
    spectra[:, :6] = 10 * random.standard_normal((3, 6))
    np.save(tmp_path / "volts.npy", fft.idct(spectra, norm="ortho") + 100)
    (tmp_path / "tiny").mkdir()
    Image.fromarray(random.integers(0, 255, (33, 33), dtype=np.uint8)).save(tmp_path / "tiny/0.png")
    return tmp_path


def evaluate(folder: Path, *extra: str, methods: str = "omp,iht", datasets: str = "volts.npy") -> int:
    places = ",".join(str(folder / name) if "." in name else name for name in datasets.split(","))
    words = ["--methods", methods, "--datasets", places, "--ratios", "0.5", "--data_dir", str(folder)]
    return main([*words, "--out", str(folder / "out"), "--device", "cpu", *extra])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out/per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_signal_with_scores_of_the_scaled_signal(
    recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(recordings, "--save_images", "--limit", "2") == 0
    table = rows(recordings)
    assert ",".join(table[0]).startswith(CONTRACT + ",")
    assert [(row["method"], row["image"]) for row in table] == [
        (method, image) for method in ("omp", "iht") for image in ("0", "1")
    ]
    volts = np.load(recordings / "volts.npy")
    (folder,) = recordings.glob("out/images/volts.npy-*")
    for row in table:
        signal = volts[int(row["image"])]
        original = np.load(folder / row["image"] / "original_signal.npy")
        assert np.allclose(original, (signal - signal.min()) / np.ptp(signal), atol=1e-5)
        (file,) = (folder / row["image"] / "0.5").glob(f"{row['method']}_*.npy")
        a, b = torch.from_numpy(np.load(file))[None], torch.from_numpy(original)[None]
        error = float((a - b).double().square().mean())
        assert float(row["mse"]) == pytest.approx(error, rel=1e-6)
        assert float(row["psnr_db"]) == pytest.approx(-10 * np.log10(error), abs=1e-6)
        assert float(row["ssim"]) == pytest.approx(ssim_1d(a, b).item())
        assert float(row["pcc"]) == pytest.approx(pcc(a, b).item())
        assert 1 / N <= float(row["sparse_rate_dct"]) <= 7 / N < float(row["sparse_rate_fft"])
        assert (row["operator"], row["channels"], row["height"], row["width"]) == ("column", "signal", str(N), "1")
        assert row["iterations"]
        assert row["converged"]
    assert "PSNR in dB / SSIM / PCC (2 signals)" in capsys.readouterr().out
    assert Image.open(recordings / "out/figures/images_volts.npy.png").width > 300
    assert "Pearson" in (recordings / "out/report.md").read_text()


def test_a_rerun_adds_nothing_and_a_batch_changes_nothing(recordings: Path) -> None:
    assert evaluate(recordings) == 0
    before = rows(recordings)
    assert evaluate(recordings, "--batch_size", "3") == 0
    assert rows(recordings) == before
    (recordings / "out/per_image.csv").unlink()
    assert evaluate(recordings, "--batch_size", "3") == 0
    for one, other in zip(before, rows(recordings), strict=True):
        # To 0.01 dB, or of what is exact to a tenth of float32's rounding, which differs between processors.
        ours, theirs = (10 ** (-float(row["psnr_db"]) / 20) for row in (one, other))
        assert ours == pytest.approx(theirs, rel=1.15e-3, abs=1.2e-8)


def test_images_and_signals_in_one_comparison(recordings: Path) -> None:
    assert evaluate(recordings, "--limit", "1", methods="pinv", datasets="tiny,volts.npy") == 0
    image, signal = rows(recordings)
    assert (image["operator"], image["channels"], image["pcc"]) == ("block:33", "luminance", "")
    assert (signal["operator"], signal["channels"]) == ("column", "signal")
    with (recordings / "out/summary.csv").open(newline="") as file:
        assert [line["pcc"] != "" for line in csv.DictReader(file)] == [False, True]


def test_a_csv_with_a_gap_and_a_matrix_from_a_file(recordings: Path, caplog: pytest.LogCaptureFixture) -> None:
    volts = np.load(recordings / "volts.npy")[:2].T
    lines = [f"{a:.6f},{'' if index == 3 else f'{b:.6f}'}" for index, (a, b) in enumerate(volts)]
    (recordings / "log.csv").write_text("left,right\n" + "\n".join(lines))
    np.save(recordings / "phi.npy", np.random.default_rng(1).standard_normal((40, N)))
    assert evaluate(recordings, "--operator", str(recordings / "phi.npy"), methods="omp", datasets="log.csv") == 0
    assert [(row["image"], row["operator"]) for row in rows(recordings)] == [
        ("left", "column from phi.npy"),
        ("right", "column from phi.npy"),
    ]
    assert "filled 1 missing samples of 128" in caplog.text


@pytest.mark.parametrize(
    ("extra", "changes", "message"),
    [
        (["--operator", "block"], {}, "--operator block is for images"),
        ([], {"methods": "linear"}, "method 'linear'"),
        ([], {"datasets": "lost.npy"}, "no signal file"),
        ([], {"methods": "{network}"}, "is a network for images"),
        ([], {"datasets": "broken.csv"}, "'x' in column '1', sample 1"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    recordings: Path, capsys: pytest.CaptureFixture[str], extra: list[str], changes: dict[str, str], message: str
) -> None:
    (recordings / "broken.csv").write_text("1,2\n3,x\n")
    if "methods" in changes:
        network = save_checkpoint(ISTANetPPModule(ISTANetPPConfig(layers=1, features=4)), recordings / "a.safetensors")
        changes = {"methods": changes["methods"].format(network=network)}
    assert evaluate(recordings, *extra, **changes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (recordings / "out").exists()


def test_list_names_the_sets_of_signals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    signals = capsys.readouterr().out.partition("datasets of 1-D signals:")[2]
    names = [line.split()[0] for line in signals.strip().splitlines()]
    assert names == ["ecg", "air_quality", "synthetic", "two_tones"]


def run_grids(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> int:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import clomp_grids

    monkeypatch.setattr(
        sys, "argv", ["clomp_grids.py", *words, "--methods", "iht,pinv", "--count", "2", "--out", str(out)]
    )
    return clomp_grids.main()


def test_grids_are_drawn_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("grid", "--lengths", "50,60", "--sparse_rates", "0.1", "--ratios", "0.2,0.4")
    assert run_grids(monkeypatch, tmp_path, *words) == 0
    table = (tmp_path / "scores.csv").read_text()
    assert len(table.splitlines()) == 1 + 2 * 2 * 2
    for score in ("ssim", "pcc", "psnr_db", "seconds"):
        assert Image.open(tmp_path / f"grid_{score}.png").height > 300
    with monkeypatch.context() as patched:
        patched.setattr("clomp_grids.make_operator", None)  # nothing is left to compute
        assert run_grids(monkeypatch, tmp_path, *words) == 0
    assert run_grids(monkeypatch, tmp_path, *words[:-1], "0.2,0.6") == 0
    assert (tmp_path / "scores.csv").read_text().startswith(table)


def test_least_ratio_is_the_first_that_reaches_the_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_grids(monkeypatch, tmp_path, "least_ratio", "--lengths", "50", "--sparse_rates", "0.1") == 0
    with (tmp_path / "least_ratio.csv").open(newline="") as file:
        least = {line["method"]: float(line["least_ratio"]) for line in csv.DictReader(file)}
    with (tmp_path / "scores.csv").open(newline="") as file:
        scores = {(line["method"], float(line["ratio"])): float(line["ssim"]) for line in csv.DictReader(file)}
    for method in ("iht", "pinv"):
        assert scores[method, least[method]] > 0.9 >= scores[method, round(least[method] - 0.01, 2)]
    assert (tmp_path / "least_ratio.png").exists()


def test_grids_of_a_file(tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("grid", "--ratios", "0.5", "--lengths", "12", "--signals")
    assert run_grids(monkeypatch, tmp_path / "g", *words, str(recordings / "volts.npy")) == 0
    assert run_grids(monkeypatch, tmp_path / "h", *words, str(recordings / "lost.npy")) == 2
    # Images are scaled, and have a sparse rate too.
    assert run_grids(monkeypatch, tmp_path / "i", *words, str(recordings / "tiny")) == 0
    with (tmp_path / "i/scores.csv").open(newline="") as file:
        image = next(csv.DictReader(file))
    assert (image["n"], image["pcc"]) == ("12", "")
    assert 0 < float(image["sparse_rate_dct"]) < 1
    assert not (tmp_path / "i/grid_pcc.png").exists()
