"""Python files of the user's own: found, imported, hashed, and their errors told in one line."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cs_models.errors import UserError, first_line, nearest, short_of_memory

# What a user's file imports of this project is no code of theirs, wherever they put their file.
PROJECT = ("cs_models", "datamodules")


@dataclass(frozen=True)
class OwnCode:
    """A file that the user named on the command line. Importing it runs it.

    Attributes:
        word: as typed: the path of a ``.py`` file, or the dotted name of a module.
        path: of the file.
    """

    word: str
    path: Path

    @classmethod
    def find(cls, word: str) -> OwnCode:
        """The file of a path or module name; it is not imported yet, packages around it are.

        Raises:
            UserError: if there is none.
        """
        if word.endswith(".py"):
            if not Path(word).is_file():
                raise UserError(f"file not found: {word}")
            return cls(word, Path(word).resolve())
        _search("")
        try:
            spec = importlib.util.find_spec(word)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise UserError(f"no Python module '{word}' here; give its file, as in module:my_file.py:NAME")
        return cls(word, Path(spec.origin).resolve())

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """This file, and those beside it that it imports, directly or through one another."""
        found: list[Path] = []
        waiting = [self.path]
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.append(path)
                waiting += _neighbours(path, self._root)
        return tuple(sorted(found))

    @property
    def _root(self) -> Path:
        """The folder from which its imports start."""
        if self.word.endswith(".py"):
            return self.path.parent
        return self.path.parents[self.word.count(".") + (self.path.name == "__init__.py")]

    @property
    def sha256(self) -> str:
        """Of the source of `files`: a result is computed again where it changed."""
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files]
        return hashlib.sha256(" ".join(sorted(digests)).encode()).hexdigest()

    def load(self) -> ModuleType:
        """The module; its file runs at the first call and where it has changed since.

        Raises:
            UserError: if running it fails, with file and line.
        """
        with self.errors_in_one_line():
            if not self.word.endswith(".py"):
                return importlib.import_module(self.word)
            _search(str(self.path.parent))
            name = f"_own_{self.path.stem}_{hashlib.sha256(f'{self.path} {self.sha256}'.encode()).hexdigest()[:12]}"
            if name not in sys.modules:
                _forget(self.files)
                sys.modules[name] = _run(name, self.path)
            return sys.modules[name]

    def attribute(self, name: str) -> object:
        """What the file calls so.

        Raises:
            UserError: if it has no such name.
        """
        module = self.load()
        if not hasattr(module, name):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            raise UserError(f"{self.word} has no '{name}'{nearest(name, own) if own else ''}")
        return getattr(module, name)

    @contextmanager
    def errors_in_one_line(self) -> Iterator[None]:
        """Turn whatever the user's code raises into one line with file and line; our own errors pass as they are.

        Raises:
            UserError: in place of an error that a line of `files` led to.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            place = None if isinstance(error, UserError) or short_of_memory(error) else self._place(error)
            if place is None:
                raise
            reason = "it ends the program" if isinstance(error, SystemExit) else _reason(error)
            raise UserError(f"{place}: {reason}") from error

    def _place(self, error: BaseException) -> str | None:
        """File and line of the user's that an error comes from, the innermost; None for one from elsewhere."""
        if isinstance(error, SyntaxError) and error.filename:
            return f"{self._shown(Path(error.filename))}, line {error.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            path = Path(frame.filename)
            if path.is_absolute() and path.resolve() in self.files:
                return f"{self._shown(path)}, line {frame.lineno}"
        return None

    def _shown(self, path: Path) -> str:
        """A path as the user would type it: as typed, or beside what was typed."""
        if path.resolve() == self.path:
            return self.word if self.word.endswith(".py") else str(self.path)
        return str(Path(self.word).parent / path.name) if self.word.endswith(".py") else str(path)


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return f"{type(error).__name__}: {first_line(error)}"


def _run(name: str, path: Path) -> ModuleType:
    """Run a file as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _forget(files: tuple[Path, ...]) -> None:
    """Let the modules of files be imported anew: one of them has changed, or this is the first time."""
    paths = {str(path) for path in files}
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in paths:
            del sys.modules[name]
    for path in files:
        # Python takes compiled code for that of a file of the same length that was changed within the same second.
        with suppress(OSError):  # in a folder that cannot be written
            Path(importlib.util.cache_from_source(str(path))).unlink()


def _search(folder: str) -> None:
    """Let imports find what lies in a folder, after everything that is installed."""
    if folder not in sys.path:
        sys.path.append(folder)


def _neighbours(path: Path, root: Path) -> list[Path]:
    """The files that a file imports from the folder `root`, or relative to itself, with the packages around them."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # importing it will say so
        return []
    found = []
    for level, name in _imported(tree):
        folder = path.parents[level - 1] if level else root
        parts = name.split(".")
        if level == 0 and parts[0] in PROJECT:
            continue
        for count in range(1, len(parts) + 1):
            base = folder.joinpath(*parts[:count])
            found += [file.resolve() for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
    return found


def _imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Level and dotted name of everything that may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            yield from ((node.level, prefix + alias.name) for alias in node.names)
