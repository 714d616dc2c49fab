"""What a class takes, read from its source: in milliseconds, since neither the class nor what it needs is imported.

Where the source does not say for certain, the answer is None: an unknown decorator, a base class without source,
keyword arguments that go anywhere but to the base class.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Decorators and bases that leave the arguments of a constructor as they are written.
PLAIN_DECORATORS = {"dataclass", "final", "override", "overload", "_defaults_from_env_vars"}
PLAIN_BASES = {"object", "ABC", "Generic", "Protocol"}


@dataclass(frozen=True)
class Source:
    """A module as it is written.

    Attributes:
        classes: its classes by name.
        imported: where other names come from: module, and the name there or None for the module itself.
    """

    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Parameter:
    """An argument of a constructor or a function.

    Attributes:
        annotation: its type as it is written.
        source: the module where it is written.
    """

    annotation: ast.expr | None
    source: Source


Parameters = dict[str, Parameter]


def parameters(target: str) -> Parameters | None:
    """The arguments of a constructor by name.

    Args:
        target: ``module:Class`` or ``module.Class``.
    """
    found = _find(*_split(target))
    return None if found is None else _constructor(*found)


def method_parameters(target: str, method: str) -> Parameters | None:
    """The arguments of a method, which may be one of a base class."""
    found = _find(*_split(target))
    while found is not None:
        source, definition = found
        function = _function(definition, method)
        if function is not None:
            return {argument.arg: Parameter(argument.annotation, source) for argument in _named(function)}
        found = _resolve(definition.bases[0], source) if definition.bases else None
    return None


def fields_of(parameter: Parameter) -> Parameters | None:
    """The fields of the dataclass that an argument is, with or without ``| None``; None for all other types."""
    found = _resolve(_without_none(parameter.annotation), parameter.source)
    return _constructor(*found) if found is not None and _is_dataclass(found[1]) else None


def _split(target: str) -> tuple[str, str]:
    module, _, name = target.replace(":", ".").rpartition(".")
    return module, name


@cache
def _read(module: str) -> Source | None:
    """A module's source; None where there is none."""
    path = _locate(module)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    source, twice = Source(), set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _statements(tree.body):
        if isinstance(node, ast.ClassDef):
            twice |= {node.name} & source.classes.keys()
            source.classes[node.name] = node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                source.imported[name] = (alias.name if alias.asname else name, None)
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(package, node)
            source.imported.update({alias.asname or alias.name: (origin, alias.name) for alias in node.names})
    for name in twice:
        del source.classes[name]
    return source


def _locate(module: str) -> Path | None:
    """The file of a module. Only its topmost package is looked up: looking up a submodule imports its parents."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest)
        for file in (path.with_name(path.name + ".py"), path / "__init__.py"):
            if rest and file.is_file():
                return file
    return None


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, also those under conditions."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
            for handler in getattr(node, "handlers", ()):
                yield from _statements(handler.body)


def _absolute(package: str, node: ast.ImportFrom) -> str:
    """The module that a statement imports from."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])


def _find(module: str, name: str, depth: int = 0) -> tuple[Source, ast.ClassDef] | None:
    """A class, followed through the modules that import it from one another."""
    source = _read(module)
    if source is None or depth > 9:
        return None
    if name in source.classes:
        return source, source.classes[name]
    origin, there = source.imported.get(name, ("", None))
    return _find(origin, there, depth + 1) if there is not None else None


def _resolve(node: ast.expr | None, source: Source) -> tuple[Source, ast.ClassDef] | None:
    """The class that an expression names: ``Class``, ``module.Class``, ``Class[...]`` or one of these in quotes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _resolve(_without_none(ast.parse(node.value, mode="eval").body), source)
        except SyntaxError:
            return None
    if isinstance(node, ast.Subscript):
        return _resolve(node.value, source)
    if isinstance(node, ast.Name):
        if node.id in source.classes:
            return source, source.classes[node.id]
        module, name = source.imported.get(node.id, ("", None))
        return _find(module, name) if name is not None else None
    if isinstance(node, ast.Attribute):
        head, *middle = ast.unparse(node.value).split(".")
        module, name = source.imported.get(head, ("", None))
        return _find(".".join(filter(None, [module, name, *middle])), node.attr) if module else None
    return None


def _without_none(node: ast.expr | None) -> ast.expr | None:
    """``X`` of ``X | None`` and ``Optional[X]``; other types as they are, None for unions of several."""
    if isinstance(node, ast.BinOp):
        sides = [side for side in (node.left, node.right) if ast.unparse(side) != "None"]
        return sides[0] if len(sides) == 1 else None
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value).rpartition(".")[2]
        return node.slice if outer == "Optional" else None
    return node


def _constructor(source: Source, definition: ast.ClassDef) -> Parameters | None:
    if not _is_plain(definition):
        return None
    init = _function(definition, "__init__")
    if init is not None:
        return _arguments(init, source, definition)
    own = _fields(source, definition) if _is_dataclass(definition) else {}
    merged: Parameters = {}
    for base in reversed(definition.bases):
        inherited = _inherited(base, source)
        if inherited is None:
            return None
        merged |= inherited
    return merged | own


def _inherited(base: ast.expr, source: Source) -> Parameters | None:
    """The arguments that a class without a constructor of its own has from a base class."""
    if _last_name(base) in PLAIN_BASES:
        return {}
    found = _resolve(base, source)
    return None if found is None else _constructor(*found)


def _is_plain(definition: ast.ClassDef) -> bool:
    known_meta = all(ast.unparse(keyword.value).endswith("ABCMeta") for keyword in definition.keywords)
    known = {_last_name(decorator) for decorator in definition.decorator_list} <= PLAIN_DECORATORS
    return known and known_meta and _function(definition, "__new__") is None


def _arguments(init: ast.FunctionDef, source: Source, definition: ast.ClassDef) -> Parameters | None:
    if not {_last_name(decorator) for decorator in init.decorator_list} <= PLAIN_DECORATORS:
        return None
    own = {argument.arg: Parameter(argument.annotation, source) for argument in _named(init)}
    if init.args.vararg is not None:
        return None
    if init.args.kwarg is None:
        return own
    if len(definition.bases) != 1 or not _goes_to_base_alone(init, init.args.kwarg.arg):
        return None
    inherited = _inherited(definition.bases[0], source)
    return None if inherited is None else inherited | own


def _named(function: ast.FunctionDef) -> list[ast.arg]:
    """The arguments that have a name, but for the first, ``self``."""
    return [*function.args.posonlyargs, *function.args.args][1:] + function.args.kwonlyargs


def _goes_to_base_alone(init: ast.FunctionDef, name: str) -> bool:
    """Whether keyword arguments are used once, in ``super().__init__(**name)``."""
    uses = [node for node in ast.walk(init) if isinstance(node, ast.Name) and node.id == name]
    calls = [node for node in ast.walk(init) if isinstance(node, ast.Call)]
    to_base = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    passed = [word.value for call in to_base for word in call.keywords if word.arg is None]
    return len(uses) == 1 and uses[0] in passed


def _fields(source: Source, definition: ast.ClassDef) -> Parameters:
    """The arguments that the fields of a dataclass are."""
    found: Parameters = {}
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        outside = isinstance(node.value, ast.Call) and "init=False" in ast.unparse(node.value)
        if not outside and "ClassVar" not in ast.unparse(node.annotation):
            found[node.target.id] = Parameter(node.annotation, source)
    return found


def _is_dataclass(definition: ast.ClassDef) -> bool:
    return any(_last_name(decorator) == "dataclass" for decorator in definition.decorator_list)


def _function(definition: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    """A method; of several of one name the last, which is the one that is not an overload."""
    found = [node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[-1] if found else None


def _last_name(node: ast.expr) -> str:
    """``name`` of ``name``, ``module.name``, ``name(...)`` and ``name[...]``."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return ast.unparse(node).rpartition(".")[2]
