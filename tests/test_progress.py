"""Long work is seen: a line that rewrites itself on a terminal, and one now and then in a file."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cs_models import progress
from cs_models.cli import evaluate, measure
from cs_models.operators import make_operator
from cs_models.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(steps: int) -> None:
    with Progress(steps, "work", "pieces") as bar:
        for _ in range(steps):
            bar.mininterval = 0
            bar.note("all is well")
            bar.update()


def test_a_terminal_has_one_line_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(3)
    written = terminal.getvalue()
    assert "work:  67%" in written
    assert " left, all is well]" in written
    assert "\n" not in written
    assert written.rstrip("\r").split("\r")[-1].strip() == ""


def test_a_file_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    work(3)
    assert capsys.readouterr().err == "", "it was over within seconds"
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 1e-9)
    work(3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"work: {done} of 3 pieces" for done in (1, 2, 3)]
    assert all(" left, all is well" in line for line in lines)
    with Progress(1000) as bar:
        pauses = []
        for _ in range(1000):
            bar.update()
            pauses.append(bar.mininterval)
    assert pauses[-1] > 1000 * pauses[0], "a long run does not fill its log"
    assert len(capsys.readouterr().err.splitlines()) < 40


def compare(folder: Path, images: Path) -> list[str]:
    return ["--methods", "pinv", "--datasets", str(images), "--ratios", "0.3", "--out", str(folder / "out")]


def reconstruct(folder: Path, images: Path) -> list[str]:
    y = make_operator("pixel", 0.5, (8, 8))(torch.rand(1, 1, 8, 8))
    np.save(folder / "y.npy", y[:, 0].numpy())
    return [
        "--methods", "pinv", "--operator", "pixel", "--ratios", "0.5", "--measurements", str(folder / "y.npy"),
        "--shape", "8,8", "--out", str(folder / "out"),
    ]  # fmt: skip


def keep_measurements(folder: Path, images: Path) -> list[str]:
    return [str(images), "--ratio", "0.3", "--shape", "33,33", "--out", str(folder / "set")]


@pytest.mark.parametrize(
    ("main", "words", "unit"),
    [
        (evaluate.main, compare, "3 of 3 images"),
        (evaluate.main, reconstruct, "1 of 1 methods"),
        (measure.main, keep_measurements, "12 of 12 pieces"),
    ],
    ids=["eval", "eval --measurements", "measure"],
)
def test_commands_show_the_time_that_is_left(
    main: Callable[[list[str]], int],
    words: Callable[[Path, Path], list[str]],
    unit: str,
    tiny_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 1e-9)
    assert main(words(tmp_path, tiny_images)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(unit in line and " left" in line for line in lines), lines
