"""The layers of the package, read from its source: nothing imports upward, in a circle, or heavy things early."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cs_models"
# From the bottom up; each may import what stands below it.
LAYERS = [
    {"errors", "files", "precision", "host_memory", "settings", "signatures", "operator_names", "locks",
     "launched", "progress"},
    {"numerics", "transforms", "moments", "arrays"},
    {"metrics"},
    {"operators"},
    {"reconstruction"},
    {"solvers"},
    {"training"},
    {"networks"},
    {"zoo"},
    {"evaluation"},
    {"cli"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The ways in from outside stand above all layers: the package itself, and a module path that scripts rely on.
ENTRANCES = {"cs_models", "cs_models.__main__", "cs_models.import_official"}
HEAVY = {"pytorch_lightning", "lightning_fabric", "diffusers", "wandb", "matplotlib", "timm", "torchmetrics"}
# Above training, but on the way of whoever loads and runs a network.
LIGHT = {"cs_models.networks.unfolding.coast", "cs_models.networks.unfolding.module", "cs_models.training.module",
         "cs_models.training.options", "cs_models.training.weights", "cs_models.zoo.methods",
         "cs_models.zoo.checkpoints", "cs_models.evaluation.options", "cs_models.evaluation.plan",
         "cs_models.cli.train", "cs_models.cli.evaluate"}  # fmt: skip
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path: Path, early: bool = False) -> Iterator[str]:
    """Full names of what a file imports; with `early` only of what is imported together with it."""
    tree = ast.parse(path.read_text())
    for node in _executed(tree) if early else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.name == "__version__":
                    continue  # a text, which anything may ask for
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that importing a file executes: not those inside functions, nor under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing_only and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _executed(child)


def layer(module: str) -> int:
    return LEVEL[module.split(".")[1]]


def test_nothing_is_imported_from_above() -> None:
    upward = {
        module: above
        for module, path in MODULES.items()
        if module not in ENTRANCES
        and (above := [name for name in imports(path) if name in MODULES and _stands_above(name, module)])
    }
    assert upward == {}


def _stands_above(name: str, module: str) -> bool:
    # The command tells the version of the package that it is the entrance of.
    return layer(module) < LEVEL["cli"] if name in ENTRANCES else layer(name) > layer(module)


def test_no_circles() -> None:
    graph = {
        module: {name for name in imports(path, early=True) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_heavy_packages_are_imported_late() -> None:
    """Below training, and by whatever loads a trained network, they are imported only when they are needed."""
    early = {
        module: heavy
        for module, path in MODULES.items()
        if module in ENTRANCES or layer(module) < LEVEL["training"] or module in LIGHT
        if (heavy := {name.split(".")[0] for name in imports(path, early=True)} & HEAVY)
    }
    assert early == {}


def test_files_are_short() -> None:
    files = [*MODULES.values(), *(PACKAGE.parent / "datamodules").rglob("*.py")]
    assert [path.name for path in files if len(path.read_text().splitlines()) > 400] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import wandb", {"wandb"}),
        ("try:\n    import wandb\nexcept ImportError:\n    pass", {"wandb"}),
        ("class A:\n    import wandb", {"wandb"}),
        ("def f():\n    import wandb", set()),
        ("if TYPE_CHECKING:\n    import wandb", set()),
        ("from cs_models.operators import block", {"cs_models.operators.block"}),
    ],
)
def test_the_reader_sees_what_an_import_executes(tmp_path: Path, source: str, found: set[str]) -> None:
    (tmp_path / "a.py").write_text(source)
    assert set(imports(tmp_path / "a.py", early=True)) == found
