"""The pages of the site, as they are put together before Sphinx sees them."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from cs_models.operator_names import OPERATORS
from cs_models.zoo.methods import METHODS, zoo
from tests.conftest import REPOSITORY, module_of


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """``docs/build_site.py``, which is no part of the package."""
    return module_of(REPOSITORY / "docs/build_site.py")


@pytest.fixture(scope="module")
def pages(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "old.md").write_text("[of an earlier call](nowhere.md)")
    (folder / "gallery").mkdir()
    (folder / "gallery/plot_gone.rst").write_text("of a script that is no more")
    builder.assemble(folder)
    (folder / "index.md").write_text((folder / "index.md").read_text(encoding="utf-8") + builder.index(with_page=False))
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
    modules = re.findall(r"<(\S+)>", (pages / "reference/index.rst").read_text(encoding="utf-8"))
    assert "cs_models.operators.block" in modules
    listed |= {f"reference/{module}" for module in modules}
    assert listed - {"gallery/index"} == written - {"index"}


def test_the_tables_are_those_of_the_program(pages: Path) -> None:
    named = re.findall(r"^\| `([^`]+)` \|", (pages / "methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted([*METHODS, *zoo(), *OPERATORS])


@pytest.mark.slow
def test_the_built_site_leads_nowhere_else(builder: ModuleType, tmp_path: Path) -> None:
    for package in ("sphinx_gallery", "myst_parser", "furo"):  # the extra `docs`, which `make docs` installs
        pytest.importorskip(package)
    site = builder.build(tmp_path, with_page=False, run_gallery=False)
    assert len(list(site.rglob("*.html"))) > 100
    assert builder.wrong_addresses(site) == []


def test_addresses_that_are_wrong_are_told(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.html").write_text("<a href='../a.html#top'></a><a href='#'></a>")
    good = (
        "<p id=top></p><a href='sub/b.html?v=1'></a><a href='https://a.org'></a><img src='data:,'><a href='#top'></a>"
    )
    (tmp_path / "a.html").write_text(good)
    assert builder.wrong_addresses(tmp_path) == []
    (tmp_path / "a.html").write_text(
        good + "<a href='c.html'></a><a href='sub/b.html#no'></a><script src='https://a.org/b.js'></script>"
    )
    addresses = [line.removeprefix("a.html: ") for line in builder.wrong_addresses(tmp_path)]
    assert addresses == ["c.html", "https://a.org/b.js", "sub/b.html#no"]
