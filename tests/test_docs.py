"""What the pages say exists: links, commands, configurations, and the tree and layers of the architecture page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cs_models.cli.configs import find_config
from cs_models.cli.main import COMMANDS
from cs_models.evaluation.report.board import WHOLE_SETS
from cs_models.evaluation.report.cards import RESULTS, read_figures
from datamodules.catalog import CATALOG
from tests.conftest import REPOSITORY
from tests.test_architecture import LAYERS, PACKAGE

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "checkpoints/README.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
ARCHITECTURE = REPOSITORY / "docs/architecture.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in re.findall(r"^cs-models (\w+)", text, re.MULTILINE) if name not in COMMANDS] == []
    scripts = re.findall(r"python (\S+\.py)\b", text)
    assert [script for script in scripts if not (REPOSITORY / script).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_exist(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").replace("\n", " ").split("`"):
        kind = "eval" if re.search(r"eval(\.py)? ", line) else "train"
        for name in re.findall(r"--config ([\w./]+)", line):
            if name not in ("C.yaml", "my_net.yaml", "configs/train/NAME.yaml", "configs/train/override/X.yaml"):
                assert find_config(name, "eval" if "configs/eval/" in name else kind)


def test_the_cards_are_about_the_sets_as_they_are_today() -> None:
    for figures in read_figures(RESULTS):
        expected = len(CATALOG["bundled"].bundled) if figures.dataset == "bundled" else WHOLE_SETS[figures.dataset]
        assert figures.images == expected, figures
    card = (REPOSITORY / "checkpoints/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| bundled .*?\|.*?\|.*?\|.*?\| (\d+) ", card, re.MULTILINE)) == {"3"}


def test_the_documented_tree_is_the_real_one() -> None:
    block = ARCHITECTURE.read_text(encoding="utf-8").split("```")[1]
    inside = set(re.findall(r"^  (\w+)(?:/|\.py) ", block, re.MULTILINE))
    # Not folders that an older version left behind with nothing but its cache.
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    real = folders | {path.stem for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert inside == real - {"shipped"}
    others = re.findall(r"^(\w+)/ ", block, re.MULTILINE)
    assert len(others) > 3
    assert [name for name in others if not (REPOSITORY / name).is_dir()] == []


def test_the_documented_layers_are_those_of_the_graph_test() -> None:
    lines = re.findall(r"^\d+\. (`.*)$", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", line)) for line in lines] == LAYERS
