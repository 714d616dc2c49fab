"""The documentation as a site that opens from disk or from a server: ``make docs``.

Sphinx, and not MkDocs: the docstrings are in its language, sphinx-gallery runs the scripts and makes notebooks of them,
and all of its parts are well kept, while Material for MkDocs ends in 2027. Nothing is fetched while the site is built
but ONNX Runtime Web, once, for the page that reconstructs in the browser. Warnings are errors, and so are links of the
built pages that lead nowhere. Formulas stay as the docstrings have them, so that no page needs MathJax from elsewhere.
Scripts of the gallery run again only when they have changed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cs_models.operator_names import list_operators
from cs_models.zoo.methods import METHODS, list_methods

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
# Pages that lie outside docs/, by their place on the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "checkpoints/README.md": "zoo.md",
}
PICTURES = {"checkpoints/training.png": "training.png"}
# What others use; each module is a page.
DOCUMENTED = (
    *("cs_models/reconstruction.py", "cs_models/metrics.py", "cs_models/operators", "cs_models/solvers"),
    *("cs_models/networks", "cs_models/training", "cs_models/transforms", "cs_models/zoo"),
    *("datamodules/catalog.py", "datamodules/measurements.py", "datamodules/patches.py"),
)
PAGE = "try.html"
# The folder of docs/ with what the experiments gave.
RESULTS = "experiments"
BROWSER = """\
# In the browser

<a href="try.html">A page that measures a photograph and rebuilds it</a>, yours or one of three, with networks that
are shipped. It is one file, computes on your own machine, and can be saved and opened from disk.
"""
GUIDE = ("measurements", "own_networks", "export", "cluster", "gpu", "performance", "idm", "architecture")


def assemble(target: Path) -> None:
    """Write the pages as the site has them, beside what an earlier call made of scripts that are still there."""
    target.mkdir(parents=True, exist_ok=True)
    scripts = {path.stem for path in (HERE / "gallery").glob("plot_*.py")}
    for path in target.iterdir():
        if path.name != "gallery":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (target / "gallery").glob("*.*"):
        if path.name.split(".")[0] not in scripts:
            path.unlink()
    pages, pictures = inside("md") | OUTSIDE, inside("png") | PICTURES
    places = pages | pictures
    for source, place in pages.items():
        path = REPOSITORY / source
        (target / place).write_text(moved(path.read_text(encoding="utf-8"), path.parent, places), encoding="utf-8")
    for source, place in pictures.items():
        shutil.copy(REPOSITORY / source, target / place)
    (target / "methods.md").write_text(tables(), encoding="utf-8")
    reference = target / "reference"
    reference.mkdir()
    for module in modules():
        text = f"{module}\n{'=' * len(module)}\n\n.. automodule:: {module}\n"
        (reference / f"{module}.rst").write_text(text, encoding="utf-8")
    entries = [f"   {module.removeprefix('cs_models.')} <{module}>" for module in modules()]
    tree = ["Modules", "=======", "", ".. toctree::", "   :maxdepth: 1", "", *entries, ""]
    (reference / "index.rst").write_text("\n".join(tree), encoding="utf-8")


def inside(suffix: str) -> dict[str, str]:
    """Files of docs/ and of its folder of results: place in the repository, and on the site."""
    docs = REPOSITORY / "docs"
    found = {f"docs/{path.name}": path.name for path in sorted(docs.glob(f"*.{suffix}"))}
    results = sorted((docs / RESULTS).glob(f"*.{suffix}"))
    return found | {f"docs/{RESULTS}/{path.name}": f"{RESULTS}_{path.name}" for path in results}


def moved(text: str, folder: Path, places: dict[str, str]) -> str:
    """A page with its links to other pages and pictures of the repository as they are on the site."""

    def link(found: re.Match[str]) -> str:
        address, _, anchor = found[1].partition("#")
        if "://" in address or not address:
            return found[0]
        inside = (folder / address).resolve().relative_to(REPOSITORY).as_posix()
        return f"]({places.get(inside, address)}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def tables() -> str:
    """The page of methods and operators, from the tables that the program itself goes by."""
    networks = [(name, summary) for name, summary in list_methods() if name not in METHODS]
    solvers = [(method.name, method.summary) for method in METHODS.values()]
    parts = ["# Methods and operators", "What `cs-models list` shows. [Solvers](solvers.md) says more of each solver."]
    for title, rows in (("Solvers", solvers), ("Networks", networks), ("Operators", list_operators())):
        lines = [f"| `{name}` | {summary.replace('|', chr(92) + '|')} |" for name, summary in rows]
        parts += [f"## {title}", "\n".join(["| name | |", "| --- | --- |", *lines])]
    return "\n\n".join(parts) + "\n"


def modules() -> Iterator[str]:
    """Names of the modules with a page of their own."""
    for name in DOCUMENTED:
        paths = [REPOSITORY / name] if name.endswith(".py") else sorted((REPOSITORY / name).rglob("*.py"))
        for path in paths:
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def index(with_page: bool) -> str:
    """The trees of contents, which are put below the first page's text."""
    guide = [*GUIDE, *sorted({Path(place).stem for place in inside("md").values()} - {*GUIDE, "solvers"})]
    trees = {
        "Guide": guide,
        "See": ["gallery/index", *(["browser"] if with_page else [])],
        "Methods": ["methods", "solvers", "zoo"],
        "Reference": ["reference/index"],
        "Project": ["contributing", "changelog"],
    }
    parts = []
    for title, entries in trees.items():
        parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *entries, "```"]))
    return "\n\n".join(parts) + "\n"


class _Addresses(HTMLParser):
    """What a page shows or leads to, and the places in it that others can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.shown: set[str] = set()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                (self.links if tag == "a" else self.shown).add(value)
            elif value and name == "id":
                self.places.add(value)


def wrong_addresses(site: Path) -> list[str]:
    """Links of a built site that lead nowhere on it, and what its pages would fetch from elsewhere.

    Returns:
        for each a line with the page and the address.
    """
    pages = {path.resolve(): _Addresses(path) for path in sorted(site.rglob("*.html")) if path.name != PAGE}

    def wrong(path: Path, address: str) -> bool:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            return address in pages[path].shown and parts.scheme != "data"
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file():
            return True
        return bool(parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places)

    return [
        f"{path.relative_to(site.resolve())}: {address}"
        for path, page in pages.items()
        for address in sorted(page.shown | page.links)
        if wrong(path, address)
    ]


def build(folder: Path, with_page: bool = True, run_gallery: bool = True) -> Path:
    """Build the site.

    Args:
        folder: for the pages on their way, and the site.
        with_page: whether the page that reconstructs in the browser is built too, which takes minutes.
        run_gallery: whether the scripts of the gallery are run, which takes minutes too.

    Returns:
        its folder.

    Raises:
        subprocess.CalledProcessError: if a part of it cannot be built, which has said why.
    """
    pages, site = folder / "pages", folder / "site"
    assemble(pages)
    if site.exists():  # with pages that may be no more; all of them are written anew anyway
        shutil.rmtree(site)
    if with_page:  # into the site as it is, beside the pages that Sphinx writes
        words = [sys.executable, HERE / "browser/build.py", "--out", site / PAGE]
        subprocess.run(words, check=True)
        (pages / "browser.md").write_text(BROWSER, encoding="utf-8")
    with (pages / "index.md").open("a", encoding="utf-8") as file:
        file.write("\n" + index(with_page))
    # With -W a warning is an error; the settings lie beside this file.
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-c", HERE / "site"]
    command += ["-D", f"plot_gallery={int(run_gallery)}", pages, site]
    subprocess.run(command, check=True)
    return site


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the documentation's site.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build", help="folder to build in")
    parser.add_argument(
        "--without_page", action="store_true", help="leave out the page that reconstructs in the browser"
    )
    options = parser.parse_args(arguments)
    try:
        site = build(options.out.resolve(), not options.without_page)
    except subprocess.CalledProcessError as error:
        return error.returncode
    wrong = wrong_addresses(site)
    for line in wrong:
        print(f"error: a link that leads nowhere, or is fetched from elsewhere: {line}", file=sys.stderr)
    print(site / "index.html")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
