"""Tables for papers: which values are marked, and LaTeX and Markdown that say what was meant."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cs_models.cli.main import main as command
from cs_models.evaluation.report.paper import LATEX_SPECIAL, latex_text, markdown_text, paper_tables
from cs_models.evaluation.results import Row
from tests.test_leaderboard import ROW, folder_of

HOSTILE = "a_b%c&d#e$f{g}h\\i~j^k<l>|m*n`o[p]\"q'r \\textbf{x} \\\\ <b>y</b>"


def rows_of(psnr_db: dict[str, float], **changes: Any) -> list[Row]:
    return [replace(ROW, method=method, psnr_db=value, **changes) for method, value in psnr_db.items()]


def cells(table: str, name: str, separator: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.strip(" |").startswith(name)]
    return [cell.strip().removesuffix("\\\\").strip() for cell in line.strip(" |").split(separator)][1:]


def test_the_best_is_bold_and_the_second_underlined_in_each_column() -> None:
    rows = rows_of({"omp": 20, "tv": 30.001, "pnp": 30.004}) + rows_of(
        {"omp": 40, "tv": 35, "iht": float("inf")}, ratio=0.3
    )
    table = paper_tables(rows, "latex", ["psnr"])
    assert cells(table, "tv", "&") == [r"\textbf{30.00}", "35.00"], "what is printed alike shares a rank"
    assert cells(table, "pnp", "&") == [r"\textbf{30.00}", ""]
    assert cells(table, "omp", "&") == [r"\underline{20.00}", r"\underline{40.00}"]
    assert cells(table, "iht", "&") == ["", r"\textbf{$\infty$}"]
    table = paper_tables(rows, "markdown")
    assert cells(table, "omp", "|") == ["<u>20.00</u> / 0.5000", "<u>40.00</u> / 0.5000"], (
        "scores are ranked by themselves"
    )
    assert cells(table, "tv", "|") == ["**30.00** / 0.5000", "35.00 / 0.5000"]
    assert "**" not in paper_tables(rows[:1], "markdown"), "one method is not the best of anything"
    more = [replace(row, image="b") for row in rows if row.method != "tv"]
    assert cells(paper_tables(rows + more, "markdown", ["psnr"]), "tv", "|") == ["30.00", "35.00"], "of fewer images"


def test_a_table_for_each_set_and_names_that_differ() -> None:
    rows = rows_of({"net": 20}, provenance="trained") + rows_of({"a/net_10.safetensors": 30}, provenance="released")
    rows += rows_of({"tv": 25}, operator="column") + rows_of({"tv": 25}, dataset="my_set")
    first, second = paper_tables(rows, "latex").split("\n\n")
    assert cells(first, "net (trained, fp32)", "&") == ["block:33", "20.00 / 0.5000"]
    assert cells(first, "net (released, fp32)", "&")[1] == r"\textbf{30.00} / 0.5000"
    assert cells(first, "tv", "&") == ["column", r"\underline{25.00} / 0.5000"]
    assert r"\caption{PSNR in dB / SSIM on my\_set (1 image, operator block:33).}" in second
    assert r"\label{tab:psnr-in-db-ssim-on-my-set-1-image-operator-block-33}" in second


def test_latex_is_well_formed_whatever_the_names_are() -> None:
    rows = rows_of({HOSTILE: 20, "tv": 30}) + rows_of({HOSTILE: 20}, ratio=0.3, operator=HOSTILE)
    table = paper_tables([replace(row, dataset=HOSTILE) for row in rows], "latex")
    assert table.startswith("% ")
    check_latex(table)
    back = {command: letter for letter, command in LATEX_SPECIAL.items()}
    pattern = "|".join(map(re.escape, sorted(back, key=len, reverse=True)))
    assert re.sub(pattern, lambda match: back[match[0]], latex_text(HOSTILE)) == HOSTILE


def check_latex(text: str) -> None:
    """Braces and environments that close, rows of as many cells as the table has columns, nothing that is special."""
    text = re.sub(r"(?m)(?<!\\)%.*", "", text)
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text.replace(r"\\", "")):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    columns = re.search(r"\\begin\{tabular\}\{([lc]+)\}", text)
    assert columns
    body = text[columns.end() : text.index(r"\bottomrule")]
    rows = [row for row in re.split(r"\\\\\n", body) if "&" in row]
    assert len(rows) == 5
    for row in rows:
        spanned = sum(int(count) - 1 for count in re.findall(r"\\multicolumn\{(\d+)\}", row))
        assert len(re.findall(r"(?<!\\)&", row)) + 1 + spanned == len(columns[1])
        assert not re.search(r"(?<!\\)[#_~^<>|]", row)
    assert set(re.findall(r"\\([a-z]+)", body)) <= {
        "toprule", "midrule", "multicolumn", "cmidrule", "textbf", "underline", "textbackslash", "textasciitilde",
        "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl",
    }  # fmt: skip


def test_markdown_shows_names_as_they_are() -> None:
    table = paper_tables(rows_of({HOSTILE: 20, "tv": 30}), "markdown")
    header, _, *lines = table.splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in [header, *lines]} == {3}
    assert re.sub(r"\\([\\`*_~<>\[\]&])", r"\1", markdown_text(HOSTILE)) == HOSTILE
    assert "<b>" not in table.replace("\\<", "")


def test_the_command_prints_tables_and_writes_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = folder_of(tmp_path / "results", rows_of({"tv": 30}))
    other = folder_of(tmp_path / "other", rows_of({"omp": 20}))
    assert command(["report", str(results), str(other), "--table", "latex", "--score", "ssim"]) == 0
    printed = capsys.readouterr().out
    assert r"\caption{SSIM on Set11" in printed
    assert [path.name for path in results.iterdir()] == ["per_image.csv"]
    assert command(["report", str(results)]) == 0
    assert "30.00 / 0.5000" in (results / "report.md").read_text(encoding="utf-8")
    capsys.readouterr()
    for words, message in {
        (str(results), str(other)): "a report is of one folder",
        (str(results), "--score", "ssim"): "a report is of one folder",
        (str(tmp_path / "missing"), "--table", "latex"): "does not exist",
        (str(results), "--table", "word"): "invalid choice: 'word'",
    }.items():
        assert command(["report", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
