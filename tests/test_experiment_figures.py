"""Figures and tables of the papers' experiments from what runs have written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cs_models.errors import UserError
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.results import ResultsFile
from tests.conftest import REPOSITORY
from tests.test_evaluation_report import rows_of

FOLDER = REPOSITORY / "experiments"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two runs: a training's losses with gaps, as Lightning writes them, and scores of two methods."""
    monkeypatch.syspath_prepend(str(FOLDER))
    folders = [tmp_path / "short", tmp_path / "long"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "metrics.csv").write_text(f"step,loss,psnr\n1,2,\n1,,{20 + number}\n2,1,\n")
    cells = [f"{m},{n},{r},{s}" for m, s in (("a", 0.6), ("b", 0.2)) for n in (50, 100) for r in (0.1, 0.5)]
    (folders[0] / "scores.csv").write_text(
        "\n".join(["method,n,ratio,ssim", *cells, "runs/x/r_coast.safetensors,50,0.1,0.9"])
    )
    return folders


def drawn(panels: list[dict[str, Any]], runs: list[Path]) -> list[Any]:
    from curves import Panel, draw

    return draw([Panel(**panel) for panel in panels], runs).axes


def test_curves_of_several_runs_are_in_one_plot(runs: list[Path]) -> None:
    (axes,) = drawn([{"table": "metrics", "x": "step", "y": "psnr", "by": ["run"]}], runs)
    assert [(line.get_label(), line.get_ydata().tolist()) for line in axes.lines] == [("short", [20]), ("long", [21])]


def test_every_value_of_a_column_has_a_panel_and_networks_their_names(runs: list[Path]) -> None:
    fifty, hundred, *_ = drawn([{"table": "scores", "x": "ratio", "y": "ssim", "each": "n"}], runs)
    assert [axes.get_title() for axes in (fifty, hundred)] == ["n = 50", "n = 100"]
    assert [line.get_label() for line in fifty.lines] == ["a", "b", "r_coast"]
    assert hundred.lines[0].get_xdata().tolist() == [0.1, 0.5]


def test_curves_of_numbers_are_in_their_order_and_say_what_they_are(runs: list[Path]) -> None:
    (runs[0] / "sizes.csv").write_text("channels,stages,psnr\n32,5,21\n16,5,20\n128,5,22\n")
    (axes,) = drawn([{"table": "sizes", "x": "stages", "y": "psnr", "by": ["channels"]}], runs)
    assert [line.get_label() for line in axes.lines] == ["channels = 16", "channels = 32", "channels = 128"]


def test_a_map_shows_how_often_one_contains_the_other(runs: list[Path]) -> None:
    panel = {"table": "scores", "x": "ratio", "y": "n", "value": "ssim", "where": {"method": "a"}}
    axes, *_ = drawn([panel | {"over": {"method": "b"}}], runs)
    assert np.allclose(axes.images[0].get_array(), 3)
    assert {text.get_text() for text in axes.texts} == {"3"}


def test_signals_are_drawn_sample_by_sample(runs: list[Path]) -> None:
    rows = rows_of("omp", [20.0], channels="signal")
    for row in rows:
        pictures = Pictures.of_row(runs[0], row)
        pictures.write(torch.tensor([0.0, 1.0]).view(1, 2, 1), torch.tensor([0.25, 0.5]).view(1, 2, 1))
    table = ResultsFile(runs[0])
    table.repair()
    for row in rows:
        table.append(row)
    panel = {"table": "signals", "x": "sample", "y": "value", "range": [0, 5]}
    (axes,) = drawn([panel], runs[:1])
    lines = [(line.get_label(), line.get_ydata().tolist()) for line in axes.lines]
    assert lines == [("original", [0, 1]), ("omp", [0.25, 0.5])]
    assert axes.get_xlim() == (0, 5)


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        ({"table": "scores", "x": "width", "y": "ssim"}, "no column 'width'; the columns are run, method"),
        ({"table": "scores", "x": "n", "y": "ssim", "where": {"method": "c"}}, "no line of scores.csv"),
        ({"table": "score", "x": "n", "y": "ssim"}, "no line of score.csv"),
    ],
)
def test_what_there_is_not_is_said_in_one_line(runs: list[Path], panel: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        drawn([panel], runs)
    assert "\n" not in str(error.value)


def test_the_programs_write_the_files(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import command
    import curves
    import pivot

    for name in ("scales.yaml", "networks.yaml"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    (tmp_path / "one.yaml").write_text(
        "title: One\nprograms: {a: x.py}\ntiny: {title: Tiny one}\nplot: [{table: scores, x: n, y: ssim}]\n"
        "pivot: {table: scores, rows: [method], across: n, values: [ssim]}\n"
    )
    for program in (curves, pivot):
        monkeypatch.setattr(sys, "argv", ["program", "one", "tiny", *map(str, runs), "--out", str(tmp_path)])
        assert command.run(tmp_path, program.__doc__, program.write) == 0
    assert Image.open(tmp_path / "figure.png").width > 200
    page = " ".join((tmp_path / "table.md").read_text().split())
    assert page.startswith("# Tiny one")
    assert "| a | 0.600 | 0.600 |" in page
    assert "| r_coast | 0.900 | |" in page


def test_measured_rows_have_four_digits_and_cells_three_or_all_whole_ones() -> None:
    import pivot

    lines = [
        {"method": "tv:weight=0.05", "kr": "0.7158466686", "n": "256", "ssim": "0.9", "mib": "1093.4", "s": "0.7368"}
    ]
    section = {"rows": ["method", "kr"], "across": "n", "values": ["ssim", "mib", "s"]}
    header, cells = ["method", "kr", "n 256"], ["tv:weight=0.05", "0.7158", "0.900 / 1093 / 0.737"]
    assert pivot.pivoted(section, lines) == (header, [cells])
