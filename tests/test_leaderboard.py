"""The leaderboard: what stands in its tables, and the page in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cs_models.cli.main import main as command
from cs_models.evaluation.leaderboard import to_json, write_site
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.plan import weights_origin
from cs_models.evaluation.report.board import Line, Table, board
from cs_models.evaluation.results import COLUMNS, ResultsFile, Row, read_rows
from tests.conftest import REPOSITORY

ROW = Row(
    method="omp", dataset="Set11", image="a", ratio=0.1, seed=0, psnr_db=20.0, ssim=0.5, seconds=0.5, device="cpu",
    operator="block:33", run_key="", settings_key="s", provenance="training-free",
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


def rows_of(method: str, psnr_db: float, images: int = 3, **changes: Any) -> list[Row]:
    row = replace(ROW, method=method, **changes)
    return [
        replace(row, image=f"image{index}", psnr_db=psnr_db + index, run_key=f"{method}{row.ratio}{index}")
        for index in range(images)
    ]


def lines(tables: list[Table]) -> dict[str, Line]:
    return {line.name: line for table in tables for line in table.lines}


def test_a_table_for_each_set_and_operator_and_none_mixes_two() -> None:
    rows = rows_of("tv", 20) + rows_of("tv", 30, operator="column") + rows_of("omp", 25)
    rows += rows_of("tv", 40, dataset="mine") + rows_of("tv", 50, noise=5.0)
    tables = [(table.problem, table.operator, [line.name for line in table.lines]) for table in board(rows)]
    assert tables == [
        ("Set11", "block:33", ["tv", "omp"]),
        ("Set11", "column", ["tv"]),
        ("Set11", "", []),
        ("mine", "block:33", ["tv"]),
        ("Set11, noise 5", "block:33", ["tv"]),
    ]
    assert len({table.key for table in board(rows)}) == 5


def test_means_with_their_intervals() -> None:
    single, several = rows_of("omp", 20, images=1), rows_of("tv", 20, images=11, macs=8, parameters=5)
    table = lines(board(single + several))
    (cell,) = table["tv"].cells
    assert (cell.images, cell.psnr_db.mean, cell.macs, table["tv"].parameters) == (11, 25, 8, 5)
    assert cell.psnr_db.low is not None
    assert cell.psnr_db.high is not None
    assert 20 < cell.psnr_db.low < 25 < cell.psnr_db.high < 30
    assert table["omp"].cells[0].psnr_db == (20, None, None)


def test_checkpoints_for_one_ratio_each_are_one_line() -> None:
    weights = [("a/net_10.safetensors", 0.1), ("a/net_30.safetensors", 0.3)]
    rows = [row for name, ratio in weights for row in rows_of(name, 30, ratio=ratio, provenance="released")]
    rows += rows_of("net", 25, provenance="trained")
    (table,) = [table for table in board(rows) if table.lines]
    found = [(line.name, line.provenance, [cell.ratio for cell in line.cells]) for line in table.lines]
    assert found == [("net", "released", [0.1, 0.3]), ("net", "trained", [0.1])]
    other = rows_of("b/net_10.safetensors", 20, provenance="released")
    assert {"a/net_10.safetensors", "b/net_10.safetensors"} <= lines(board(rows + other)).keys()


def test_printed_figures_have_a_table_of_their_own_and_stand_beside_whole_sets_alone() -> None:
    whole, part = rows_of("ista_net_pp", 20, images=11), rows_of("r_coast", 20, images=3)
    measured, printed = board(whole + part)
    assert [line.name for line in measured.lines] == ["ista_net_pp", "r_coast"]
    assert printed.lines == []
    assert {"DGUNet+", "ISTA-Net++"} <= {line.name for line in printed.printed}
    assert 28.34 in [figure.psnr_db for figure in measured.lines[0].cells[0].printed]
    part_of = lines(board(rows_of("ista_net_pp", 20, images=10)))
    assert part_of["ista_net_pp"].cells[0].printed == []


@pytest.mark.parametrize(
    ("provenance", "origin"),
    [
        ({}, "trained"),
        ({"steps": 5, "start_from": {"steps": 3}}, "trained"),
        ({"imported": "scnet"}, "released"),
        ({"steps": 5, "start_from": {"steps": 2, "start_from": {"imported": "scnet"}}}, "fine-tuned"),
        ({"start_from": 5}, "trained"),
    ],
)
def test_where_weights_come_from(provenance: dict[str, Any], origin: str) -> None:
    assert weights_origin(provenance) == origin


def test_tables_without_later_columns_are_read(tmp_path: Path) -> None:
    ResultsFile(tmp_path).repair()
    ResultsFile(tmp_path).append(ROW)
    path = tmp_path / "per_image.csv"
    assert COLUMNS[-2:] == ("provenance", "origin")
    path.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in path.read_text().splitlines()))
    assert list(read_rows(path)) == [replace(ROW, provenance="")]


def test_numbers_and_texts_that_json_or_html_cannot_hold() -> None:
    value = {"a": float("inf"), "b": (float("-inf"), float("nan")), "c": HOSTILE}
    text = to_json(value)
    assert "<" not in text
    assert json.loads(text) == {"a": "Infinity", "b": ["-Infinity", None], "c": HOSTILE}


def folder_of(path: Path, rows: list[Row]) -> Path:
    path.mkdir()
    table = ResultsFile(path)
    table.repair()
    for row in rows:
        table.append(row)
    return path


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, empty = folder_of(tmp_path / "results", [ROW]), folder_of(tmp_path / "empty", [])
    (tmp_path / "index.html").write_text("my own page")
    for words, message in {
        (str(results), "--out", str(results)): "is one of the results folders",
        (str(results), "--out", str(tmp_path)): "is no leaderboard",
        (str(tmp_path / "missing"), "--out", str(tmp_path / "site")): "does not exist",
        (str(empty), "--out", str(tmp_path / "site")): "no results yet",
    }.items():
        assert command(["leaderboard", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert (tmp_path / "index.html").read_text() == "my own page"


def test_the_committed_results_are_complete_rows_of_known_origin() -> None:
    rows = ResultsFile(REPOSITORY / "benchmarks/leaderboard").rows()
    assert {row.dataset for row in rows} <= {"Set11", "CBSD68"}
    assert {row.provenance for row in rows} == {"training-free", "trained", "released"}
    assert not any(Path(row.method).is_absolute() for row in rows)


# The page in a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VISIT = Path(__file__).with_name("leaderboard_visit.js")
FRAMES = """<!doctype html><pre></pre><script>
const logs = [];
onmessage = ({ data }) => { logs.push(data); document.querySelector("pre").textContent = JSON.stringify(logs); };
</script>
<iframe src="site/index.html#[view]" width="1280" height="900"></iframe>
<iframe src="site/index.html#[view]" width="400" height="900"></iframe>"""


SEEN = {
    "fits": True,  # the page itself does not scroll sideways
    "shared": ["ascending", True],  # the address says what is shown
    "score": False,
    # What has no value comes last, in both directions.
    "descending": [["tv", "omp", "ista_net_pp", HOSTILE], "descending", "none"],
    "ascending": [["ista_net_pp", "omp", "tv", HOSTILE], "ascending"],
    "names": [HOSTILE, "ista_net_pp", "omp", "tv"],
    "bold": ["29.00", "34.00"],  # and not the 31 dB of three images
    "beside": ["printed 28.34"],
    "found": [["tv"], True, True],
    "filtered": [[HOSTILE, "ista_net_pp"], True],
    "unprinted": [True, 0],
    "open": "true",
    "pictures": [
        ["image0, the original", 30, 20],
        ["image0, reconstructed by tv at ratio 0.1", 30, 20],
        ["error of tv on image0, four times enlarged", 30, 20],
        ["", 30, 20],
    ],
    "closed": ["false", 0],
    "without": True,
    "foreign": 3,  # the page's data, its script, and the visitor's
    "heads": True,  # every header cell says what it heads
    "nameless": 0,
}


def visited(folder: Path) -> Path:
    """A site of five lines, one of them hostile, whose page tells the frame around it what a visitor sees."""
    rows = rows_of("tv", 24, 11) + rows_of("tv", 29, 11, ratio=0.3) + rows_of("omp", 22, 11)
    rows += rows_of("omp", 20, 11, ratio=0.3) + rows_of(HOSTILE, 30, 3, ratio=0.3, provenance="own code")
    rows += rows_of("ista_net_pp", 15, 11, provenance="released", parameters=760_220)
    rows += [row for ratio in (0.4, 0.5) for row in rows_of("tv", 33, 11, ratio=ratio)]  # wider than a telephone
    results = folder_of(folder / "results", rows)
    later = folder_of(folder / "later", rows_of("omp", 21, operator="column"))
    Pictures.of_row(results, rows[0]).write(torch.rand(1, 20, 30), torch.rand(1, 20, 30))
    page = write_site([results, later], folder / "site")
    visit = f"<script>{VISIT.read_text(encoding='utf-8')}</script></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", visit), encoding="utf-8")
    frames = folder / "frames.html"
    frames.write_text(FRAMES.replace("[view]", "score=ssim&sort.Set11_block_33=0.3,ascending"), encoding="utf-8")
    return frames


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """It sorts, filters, opens lines and shows pictures; what is text stays text."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium or Chrome")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--window-size=1800,1000", "--virtual-time-budget=30000", "--dump-dom"]
    address = visited(tmp_path).as_uri()
    for _ in range(3):  # on a busy machine the browser's virtual time may end before it has loaded the frames
        done = subprocess.run([browser, *options, address], capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r"<pre>(.+?)</pre>", done.stdout, re.DOTALL)
        if found:
            break
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    logs = {log.pop("width"): log for log in json.loads(html.unescape(found[1]))}
    assert logs == {1280: SEEN, 400: SEEN}
