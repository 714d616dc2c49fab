"""From rows to summaries, published figures, differences, reports and merged folders."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cs_models.cli.evaluate import main
from cs_models.evaluation.report.merge import main as merge_main
from cs_models.evaluation.report.statistics import confidence_interval, paired_differences
from cs_models.evaluation.report.summary import published_method, summarise
from cs_models.evaluation.report.tables import quality_tables, write_report
from cs_models.evaluation.results import ResultsFile, Row

ROW = Row(
    method="omp",
    dataset="Set11",
    image="a",
    ratio=0.1,
    seed=0,
    psnr_db=20.0,
    ssim=0.5,
    seconds=0.5,
    device="cpu",
    operator="block:33",
    run_key="",
    settings_key="s",
)


def rows_of(method: str, psnr_db: list[float], **changes: Any) -> list[Row]:
    return [
        replace(ROW, method=method, image=f"image{index}", psnr_db=value, run_key=f"{method}{index}", **changes)
        for index, value in enumerate(psnr_db)
    ]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with two methods, two ratios and two pictures."""
    (tmp_path / "tiny").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5), dtype=np.uint8)
    for name in ("one", "two"):
        Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC).save(tmp_path / f"tiny/{name}.png")
        pixels = pixels[::-1]
    arguments = ["--datasets", str(tmp_path / "tiny"), "--ratios", "0.1,0.3", "--device", "cpu"]
    assert main(["--methods", "pinv,tv:iterations=20", *arguments, "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_exact_reconstructions_are_counted_and_left_out_of_the_mean() -> None:
    """A constant signal is reconstructed without error: its PSNR is infinite, and would make that of all infinite."""
    rows = [*rows_of("omp", [20, 22, float("inf")]), *rows_of("iht", [19, 20, float("inf")])]
    first, second = summarise(rows)
    assert (first.images, first.exact, first.psnr_db) == (3, 1, 21)
    assert second.psnr_std == pytest.approx(0.5**0.5)
    (difference,) = paired_differences(rows)
    assert (difference.images, difference.difference_db) == (2, 1.5)
    assert "Up to 1 of them" in quality_tables([first, second])
    (whole,) = summarise(rows_of("pinv", [float("inf")] * 2))
    assert (whole.exact, whole.psnr_db) == (2, float("inf"))


def test_mean_and_spread_over_images() -> None:
    (summary,) = summarise(rows_of("omp", [20, 22, 27]))
    assert (summary.images, summary.psnr_db) == (3, 23)
    assert summary.psnr_std == pytest.approx(np.std([20, 22, 27], ddof=1))
    assert summary.psnr_seed_std is None
    assert summary.images_per_second == 2


def test_only_the_newest_settings_count() -> None:
    old = rows_of("omp", [20, 20, 20])
    new = [replace(row, settings_key="t", psnr_db=30.0) for row in old[:1]]
    (summary,) = summarise(old + new)
    assert (summary.images, summary.psnr_db) == (1, 30)


def test_what_is_measured_differently_is_not_averaged() -> None:
    rows = rows_of("omp", [20, 22])
    changes: list[dict[str, Any]] = [
        {"ratio": 0.3},
        {"operator": "column"},
        {"noise": 5.0},
        {"bits": 4},
        {"channels": "rgb"},
        {"precision": "bf16"},
        {"schedule": "4 4"},
        {"dataset": "CBSD68"},
    ]
    for change in changes:
        rows += rows_of("omp", [30, 32], **change)
    assert [summary.images for summary in summarise(rows)] == [2] * (1 + len(changes))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("ista_net_pp", "ISTA-Net++"),
        ("ista_net_plus", "ISTA-Net+"),
        ("ista_net", None),
        ("runs/r_coast_small.safetensors", "R-COAST"),
        ("clomp:recipe=released", "CLOMP"),
        ("clomp_warm", None),
        ("coaster", None),
    ],
)
def test_names_in_papers(method: str, name: str | None) -> None:
    assert published_method(method) == name


@pytest.mark.parametrize(
    ("change", "psnr_db"),
    [
        ({"method": "ista_net_pp", "dataset": "Set11", "ratio": 0.1}, 28.34),
        ({"method": "ista_net_plus", "dataset": "CBSD68", "ratio": 0.1}, 25.24),
        ({"method": "idm", "dataset": "Urban100-256", "ratio": 0.5, "channels": "rgb"}, None),
        ({"method": "ista_net_pp", "dataset": "Set11", "ratio": 0.15}, None),
        ({"method": "ista_net_pp", "dataset": "Set11", "ratio": 0.1, "channels": "rgb"}, None),
        ({"method": "ista_net_pp", "dataset": "Set11", "ratio": 0.1, "noise": 2.0}, None),
        ({"method": "clomp", "dataset": "Set11", "ratio": 0.1, "operator": "column"}, None),
        ({"method": "ista_net_pp", "dataset": "BrainMRI", "ratio": 0.1}, None),
    ],
)
def test_a_published_figure_needs_the_same_set_ratio_and_channels(
    change: dict[str, Any], psnr_db: float | None
) -> None:
    (summary,) = summarise([replace(ROW, **change)])
    if change["method"] == "idm":
        assert summary.published_psnr_db is not None
        assert "Table 2" in summary.source
        return
    assert summary.published_psnr_db == psnr_db
    if psnr_db is not None:
        assert summary.difference_db == pytest.approx(20 - psnr_db)


def test_every_source_of_a_published_figure_is_listed() -> None:
    (summary,) = summarise([replace(ROW, method="ista_net_plus", dataset="CBSD68", ratio=0.1)])
    for source in ("ISTA-Net++", "100% data", "3% data", "IDM"):
        assert source in summary.source


def test_paired_differences_are_of_the_same_images() -> None:
    rows = rows_of("good", [21, 31, 26, 26]) + rows_of("poor", [20, 30, 25])
    (difference,) = paired_differences(rows)
    assert (difference.method, difference.other, difference.images) == ("good", "poor", 3)
    assert difference.difference_db == difference.low_db == difference.high_db == 1
    assert difference.wins == 1


def test_one_method_on_two_operators_is_two_methods() -> None:
    rows = rows_of("net", [30, 31], operator="block:33") + rows_of("net", [20, 21], operator="block:33 from phi.npy")
    (difference,) = paired_differences(rows)
    assert (difference.method, difference.other) == ("net", "net [block:33 from phi.npy]")
    assert difference.difference_db == 10


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = confidence_interval(random.standard_normal(30))
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
    assert 85 <= covered <= 99


def test_a_single_image_has_no_interval() -> None:
    (difference,) = paired_differences(rows_of("a", [21]) + rows_of("b", [20]))
    assert (difference.low_db, difference.high_db) == (None, None)


def test_the_report_says_how_it_was_measured_and_shows_every_number(results: Path) -> None:
    report = (results / "report.md").read_text()
    for row in csv.DictReader((results / "summary.csv").open(newline="")):
        assert f"{float(row['psnr_db']):.2f} / {float(row['ssim']):.4f}" in report
    for words in ("block:33", "cpu", "BT.601", "95 % interval", "tv:iterations=20", "seconds per image"):
        assert words in report
    for figure in ("psnr_tiny", "images_tiny"):
        assert f"figures/{figure}.png" in report
        assert Image.open(results / f"figures/{figure}.png").width > 300


def test_a_report_without_any_picture_has_no_strip(tmp_path: Path) -> None:
    write_report(rows_of("omp", [20, 22]) + rows_of("iht", [19, 21]), tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["psnr_Set11.png"]


def test_a_single_result_is_no_curve(tmp_path: Path) -> None:
    write_report(rows_of("omp", [20, 22]), tmp_path)
    assert not any(tmp_path.glob("figures/*"))


def test_perfect_reconstructions_do_not_break_the_report(tmp_path: Path) -> None:
    infinite = float("inf")
    write_report(rows_of("a", [infinite, 20]) + rows_of("b", [20, 20]) + rows_of("c", [infinite] * 2), tmp_path)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "inf / 0.5" in report
    assert "left out of the mean PSNR" in report


def test_folders_are_joined_with_their_pictures(results: Path, tmp_path: Path) -> None:
    other, joint = tmp_path / "other", tmp_path / "joint"
    arguments = ["--datasets", str(tmp_path / "tiny"), "--ratios", "0.1", "--device", "cpu", "--out", str(other)]
    main(["--methods", "pinv,backprojection", *arguments])
    assert merge_main([str(results), str(other), "--out", str(joint)]) == 0
    rows = ResultsFile(joint).rows()
    assert len(rows) == 8 + 2, "rows that both have are there once"
    assert {row.method for row in rows} == {"pinv", "tv:iterations=20", "backprojection"}
    assert (joint / "figures/images_tiny.png").exists()
    before = (joint / "per_image.csv").read_bytes()
    assert merge_main([str(results), "--out", str(joint)]) == 0
    assert (joint / "per_image.csv").read_bytes() == before


def test_mistakes_in_joining_are_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert merge_main([str(tmp_path / "nothing"), "--out", str(tmp_path / "joint")]) == 2
    assert merge_main([str(results), "--out", str(results)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "nothing" in lines[0]
    assert "choose another" in lines[1]
