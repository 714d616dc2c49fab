"""Figures and pages of reports: nothing overlaps, nothing is mostly white, and any name is only text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from cs_models.evaluation.report.figures import bars, comparison, curves
from cs_models.evaluation.report.strips import Tile, strip, wrapped
from cs_models.evaluation.report.summary import Summary, summarise
from cs_models.evaluation.report.web import append_section, page, write_pages
from tests.test_evaluation_report import ROW

NAMES = [
    "linear",
    "tv:weight=0.003:iterations=60",
    "ista_net_plus",
    "runs/a/model.safetensors",
    "pnp",
    "runs/b/model.safetensors",
    *(f"results/leaderboard/official/another_network_with_a_long_name_{index}.safetensors" for index in range(9)),
]


def summaries(ratios: list[float], seconds: float = 0.3) -> list[Summary]:
    """Methods with names of all lengths whose times lie close together, or far from one another."""
    return summarise(
        replace(ROW, method=name, ratio=ratio, psnr_db=20 + index, seconds=seconds * (1 + index) ** 2,
                operator="block:33 from checkpoint" if index % 2 else "block:33")
        for index, name in enumerate(NAMES) for ratio in ratios
    )  # fmt: skip


def boxes(figure: Figure) -> tuple[list[tuple[str, Bbox]], list[Bbox]]:
    """Where every text of a drawn figure stands, and its axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = axis.get_major_ticks()
            texts += [axis.label, *(tick.label1 for tick in ticks if low <= tick.get_loc() <= high)]
    shown = [text for text in texts if text.get_text() and text.get_visible()]
    found = [(text.get_text(), text.get_window_extent(renderer)) for text in shown]
    areas = [axes.get_window_extent(renderer) for axes in figure.axes]
    return found + [("legend", legend.get_window_extent(renderer)) for legend in figure.legends], areas


def overlaps(one: Bbox, other: Bbox) -> bool:
    common = Bbox.intersection(one, other)
    return common is not None and common.width > 1 and common.height > 1


@pytest.mark.parametrize("seconds", [0.3, 1e-5])
@pytest.mark.parametrize("ratios", [[0.1], [0.1, 0.3]])
def test_nothing_is_printed_over_anything_else(ratios: list[float], seconds: float) -> None:
    figure = comparison(summaries(ratios, seconds), "Set11, noise 5")
    texts, areas = boxes(figure)
    assert [(one[0], two[0]) for one, two in combinations(texts, 2) if overlaps(one[1], two[1])] == []
    assert all(area.y1 <= figure.bbox.y1 and area.x1 <= figure.bbox.x1 for _, area in texts)
    for name, box in texts:
        if name == "legend":
            assert not any(overlaps(box, area) for area in areas)
    assert len(figure.axes[1].get_xticks()) >= 2


def test_one_ratio_has_bars_and_every_method_looks_different() -> None:
    single, several = summaries([0.1]), summaries([0.1, 0.3])
    assert comparison(single, "x").axes[0].patches
    lines = comparison(several, "x").axes[0].lines
    assert (
        len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == len(lines) == len(NAMES)
    )
    legend = [text.get_text().replace("\n", "") for text in curves(several, "x").legends[0].get_texts()]
    assert "another_network_with_a_long_name_0.safetensors" in legend[6]
    assert "leaderboard" not in legend[6]
    assert legend[3].startswith("runs/a/model"), "two files of one name keep their folders"


def test_infinite_psnr_has_a_bar_too() -> None:
    figure = bars([replace(one, psnr_db=float("inf")) for one in summaries([0.1])[:2]], "x")
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].texts[0].get_text() == "inf"


@pytest.mark.parametrize(
    ("shape", "count", "groups"),
    [((60, 60), 10, 2), ((90, 50, 3), 6, 1), ((200, 30), 2, 1), ((20, 90), 3, 1), ((99,), 3, 1), ((60, 60), 1, 1)],
)
def test_strips_wrap_and_hold_little_white(shape: tuple[int, ...], count: int, groups: int) -> None:
    tiles = [Tile(f"{name} [block:33 from checkpoint]\n23.45 dB", np.zeros(shape)) for name in NAMES[:count]]
    figure = strip([("ratio 0.1", tiles)] * groups, "Set11: Monarch, a name of an image that is not short")
    assert figure.get_figwidth() <= 10.1, "a README would make its letters too small to read"
    texts, areas = boxes(figure)
    assert len(areas) == groups * count
    everything = [box for _, box in texts] + areas
    assert not any(overlaps(one, other) for one, other in combinations(everything, 2))
    inside = Bbox.union(everything)
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= figure.bbox.x1 + 1
    assert inside.y1 <= figure.bbox.y1 + 1
    if count > 5:
        assert sum(area.width * area.height for area in areas) > 0.52 * figure.bbox.width * figure.bbox.height
    for area in areas:
        if len(shape) > 1 and shape != (200, 30):
            assert area.height / area.width == pytest.approx(shape[0] / shape[1], rel=0.03)


def test_a_picture_that_cannot_be_read_has_its_title() -> None:
    figure = strip([("", [Tile("lost", None), Tile("here", np.zeros((8, 8)))])])
    assert [axes.get_title() for axes in figure.axes] == ["lost", "here"]


def test_long_names_break_behind_slashes_and_colons() -> None:
    assert wrapped("results/first/model.safetensors", 1.7) == ["results/first/", "model.safetensors"]
    assert wrapped("tv:weight=0.003:iterations=60\n20 dB", 1.7) == ["tv:weight=0.003:", "iterations=60", "20 dB"]


class Elements(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "<script>alert(1)</script>&amp;\"'<img src=x onerror=y>"


def test_any_name_is_only_text(tmp_path: Path) -> None:
    table = f"| method {HOSTILE} | ratio |\n|--|--|\n| a\\|b {HOSTILE} | 0.1 |"
    sections = [f"# {HOSTILE}", f"Text of `code` and {HOSTILE}", table, f"![{HOSTILE}](figures/../../secret.png)"]
    for path in write_pages(tmp_path, "report", sections):
        assert path.is_file()
    elements = Elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {tag for tag, _ in elements.found} & {"script", "img", "link", "iframe"}
    assert elements.text.count(HOSTILE) == 6, "title, heading, text, two cells and a picture that there is not"
    assert "a|b" in elements.text


def test_a_page_holds_its_pictures_and_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    strip([("", [Tile("x", np.zeros((8, 8)))])]).savefig(tmp_path / "figures/one.png")
    write_pages(tmp_path, "report", ["# Report", "![one](figures/one.png)", "| a | b |\n|--|--|\n| x | 1.5 / 0.2 |"])
    append_section(tmp_path, "## More\n\n| c |\n|--|\n| last |")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    sources = [attributes["src"] or "" for tag, attributes in Elements(text).found if tag == "img"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(http|//|file)", text)
    assert '<td class="n">1.5 / 0.2</td>' in text
    assert "<h2>More</h2>" in text
    assert (tmp_path / "report.md").read_text().endswith("| last |\n")
    assert "not a picture" in page("![not a picture](figures/no.png)", tmp_path)
