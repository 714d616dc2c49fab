"""The shipped networks give what their cards say; the cards are made from results by a command."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from cs_models import load
from cs_models.cli import evaluate as evaluation
from cs_models.errors import UserError
from cs_models.evaluation.report.cards import RESULTS, add, card, main, read_figures, write_cards
from cs_models.evaluation.results import ResultsFile
from cs_models.operators import make_operator
from cs_models.zoo.checkpoints import load_checkpoint
from cs_models.zoo.methods import ZOO, zoo
from tests.test_evaluation_report import rows_of
from tests.test_train import SMALL, fit


def bundled_figures() -> list[dict[str, str]]:
    """Of every file in the zoo the card's figures on the bundled photographs, at its lowest ratio."""
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["dataset"] == "bundled" and line["images"] == "3"]
    lowest: dict[tuple[str, str], dict[str, str]] = {}
    for line in sorted(lines, key=lambda line: float(line["ratio"])):
        percent = round(100 * float(line["ratio"]))
        alone = percent in zoo()[line["method"]]
        lowest.setdefault((line["method"], str(percent) if alone else ""), line)
    return list(lowest.values())


def test_every_network_has_a_card_configuration_and_log() -> None:
    card = (ZOO / "README.md").read_text()
    files = [path for paths in zoo().values() for path in paths.values()]
    assert len(bundled_figures()) == len(files)
    for path in files:
        assert path.name in card
        assert path.with_suffix(".yaml").is_file()
        assert path.with_suffix(".csv").is_file()


def test_damage_of_a_shipped_network_is_noticed(tmp_path: Path) -> None:
    for path in (path for paths in zoo().values() for path in paths.values()):
        content = bytearray(path.read_bytes())
        assert load_checkpoint(path).name
        content[-1] ^= 1  # a weight in its last place
        (tmp_path / path.name).write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            load_checkpoint(tmp_path / path.name)


@pytest.mark.slow
@pytest.mark.parametrize("line", bundled_figures(), ids=lambda line: f"{line['method']} {line['ratio']}")
def test_a_network_gives_the_figures_of_its_card(
    line: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cs_models.evaluation.loop.LARGE_IMAGE", 0)  # no reconstruction before those that are timed
    words = ["--methods", line["method"], "--datasets", "bundled", "--ratios", line["ratio"]]
    assert evaluation.main([*words, "--precision", line["precision"], "--device", "cpu", "--out", str(tmp_path)]) == 0
    with (tmp_path / "summary.csv").open(newline="") as file:
        (result,) = csv.DictReader(file)
    assert float(result["psnr_db"]) == pytest.approx(float(line["psnr_db"]), abs=0.01)
    assert float(result["ssim"]) == pytest.approx(float(line["ssim"]), abs=5e-4)


def test_a_loaded_network_reconstructs() -> None:
    network = load("r_coast")
    operator = make_operator("block", 0.1, (40, 50))
    x = torch.rand(1, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    assert network.reconstruct(operator(x), operator).shape == x.shape


def test_add_ships_a_training_without_the_machines_paths(tmp_path: Path) -> None:
    run, shelf = tmp_path / "run", tmp_path / "zoo"
    run.mkdir()
    (run / "model.safetensors").write_bytes((ZOO / "r_coast.safetensors").read_bytes())
    (run / "config.yaml").write_text(
        "model: {class_path: x, init_args: {training: {start_from: /home/me/a.safetensors}}}\n"
        "data: {train_sets: [T91], data_dir: /home/me, batch_size: 2, crop_size: 33}\n"
        "trainer: {max_steps: 9, max_epochs: -1, precision: 32-true, gradient_clip_val: null, logger: /home/me}\n"
    )
    (run / "metrics.csv").write_text("epoch,step,train/loss,val/psnr,val/psnr_10\n0,3,0.1,,\n0,4,,24.5,24.5\n")
    path = add(run, "small_10", "a desk", shelf)
    assert "/home/me" not in path.with_suffix(".yaml").read_text()
    assert "start_from: a.safetensors" in path.with_suffix(".yaml").read_text()
    assert path.with_suffix(".csv").read_text() == "step,val/psnr,val/psnr_10\n4,24.5,24.5\n"
    with pytest.raises(UserError, match="no results for small"):
        write_cards([_results_of(tmp_path)], shelf)


def test_figures_stand_beside_those_of_released_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = tmp_path / "zoo"
    shelf.mkdir()
    for path in ZOO.glob("r_coast.*"):
        shutil.copy(path, shelf)
    for folder, method, changes in (
        ("ours", "r_coast", {"seconds": 0.25}),
        ("theirs", "a/r_coast_5x4.safetensors", {"provenance": "released"}),
        ("theirs", "a/r_coaster.safetensors", {"provenance": "released"}),
        ("others", "r_coast", {"ratio": 0.3}),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        table = ResultsFile(tmp_path / folder)
        table.repair()
        for row in rows_of(method, [28.0 if folder == "ours" else 29.5], **changes):
            table.append(row)
    for released, expected in ((tmp_path / "theirs", 29.5), (None, 29.5), (tmp_path / "ours", None)):
        write_cards([tmp_path / "ours"], shelf, released)
        (figure,) = read_figures(shelf / "results.csv")
        assert (figure.psnr_db, figure.released_psnr_db, figure.seconds) == (28.0, expected, 0.25)
    assert not caplog.text
    text = (shelf / "README.md").read_text()
    assert "281,674 parameters, 1,121,914 multiply-adds per pixel" in text
    write_cards([tmp_path / "others"], shelf)
    assert f"lost what these folders lack: r_coast on {figure.dataset} at 0.1" in caplog.text


def _results_of(folder: Path) -> Path:
    words = ["--methods", "backprojection", "--datasets", "bundled", "--limit", "1", "--ratios", "0.1"]
    assert evaluation.main([*words, "--out", str(folder / "results")]) == 0
    return folder / "results"


def test_a_card_counts_the_steps_of_earlier_trainings(tiny_images: Path, tmp_path: Path) -> None:
    run = tmp_path
    for name in ("first", "second", "third"):
        start = [] if name == "first" else [f"--model.init_args.training.start_from={run}/model.safetensors"]
        run = fit(ZOO.parent / "configs/train/r_coast.yaml", tiny_images, tmp_path / name, *SMALL, *start)
    path = add(run, "small", "a desk", tmp_path / "zoo")
    text = card("small", {None: path}, [])
    assert "2 steps of 2 crops of 33x33" in text
    assert "a desk, after 4 steps of earlier trainings." in text


def test_a_folder_without_a_training_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["add", str(tmp_path), "net", "--hardware", "a desk"]) == 2
    assert capsys.readouterr().err.startswith("error: checkpoint not found")
