"""The pages of the site, as they are put together before Sphinx sees them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from cs_models.operator_names import OPERATORS
from cs_models.zoo.methods import METHODS, zoo
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("build_site", REPOSITORY / "docs/build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("pages")
    (folder / "old.md").write_text("[of an earlier call](nowhere.md)")
    module.assemble(folder)
    (folder / "index.md").write_text((folder / "index.md").read_text(encoding="utf-8") + module.index(with_page=False))
    return folder


def test_every_link_leads_to_a_page(pages: Path) -> None:
    links = [
        (page.name, link)
        for page in pages.glob("*.md")
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in link
    ]
    assert len(links) > 20
    assert [(page, link) for page, link in links if not (pages / link).is_file()] == []


def test_every_page_is_in_the_contents(pages: Path) -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (pages / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    listed = {line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")}
    written = {path.relative_to(pages).with_suffix("").as_posix() for path in pages.rglob("*.[mr][ds]*")}
    modules = re.findall(r"<(cs_models\..+)>", (pages / "reference/index.rst").read_text(encoding="utf-8"))
    assert "cs_models.operators.block" in modules
    listed |= {f"reference/{module}" for module in modules}
    assert listed - {"gallery/index"} == written - {"index"}


def test_the_tables_are_those_of_the_program(pages: Path) -> None:
    named = re.findall(r"^\| `([^`]+)` \|", (pages / "methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted([*METHODS, *zoo(), *OPERATORS])
