"""What Windows and macOS lack, hidden here from the code that has to do without it."""

from __future__ import annotations

import ast
import errno
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.programs import peak_resident_bytes
from cs_models.errors import UserError
from cs_models.evaluation import results
from cs_models.evaluation.perceptual import _hub_with
from cs_models.evaluation.pictures import slug
from cs_models.evaluation.report.summary import published_method
from cs_models.evaluation.results import ResultsFile, Row, only_writer
from cs_models.training.callbacks import StopOnSigterm
from cs_models.zoo.methods import parse_method
from datamodules.patches import PatchDataModule, ResumableLoader
from eval import main
from tests.conftest import REPOSITORY

SOURCES = sorted(
    path
    for pattern in ("*.py", "cs_models/**/*.py", "datamodules/**/*.py", "benchmarks/**/*.py")
    for path in REPOSITORY.glob(pattern)
)
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_OF_OS = {
    "chown", "fchmod", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg",
    "mkfifo", "nice", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs",
    "sysconf", "uname", "wait", "wait3", "wait4",
}  # fmt: skip
SIGNALS_OF_WINDOWS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
REFUSED_BY_WINDOWS = set('<>:"/\\|?*') | set(map(chr, range(32)))
ROW = Row(
    method="omp", dataset="Set11", image="Monarch", ratio=0.1, seed=0, psnr_db=30.0, ssim=0.9, seconds=1.0,
    device="cpu", operator="block", run_key="0",
)  # fmt: skip


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    """The parts of a kind in the whole source, each with where it is."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}", node


def test_the_source_is_found() -> None:
    assert len(SOURCES) > 50


def test_no_module_of_posix_is_imported_where_a_file_is_imported() -> None:
    found = [
        (where, name)
        for where, module in nodes(ast.Module)
        for statement in module.body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in [getattr(statement, "module", None), *(alias.name for alias in statement.names)]
        if name in POSIX_MODULES
    ]
    assert found == []


def test_no_name_is_used_that_os_and_signal_lack_on_windows() -> None:
    found = []
    for where, node in nodes(ast.Attribute):
        owner, name = getattr(node.value, "id", None), node.attr
        unknown_signal = owner == "signal" and name.startswith("SIG") and name not in SIGNALS_OF_WINDOWS
        if unknown_signal or (owner == "os" and name in POSIX_OF_OS):
            found.append(f"{where} {owner}.{name}")
    assert found == []


def test_every_text_file_names_its_encoding() -> None:
    """Without one, Python before 3.15 takes the one that Windows is set to."""
    found = []
    for where, call in nodes(ast.Call):
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
        words = [part.value for value in call.args for part in ast.walk(value) if isinstance(part, ast.Constant)]
        opens = name == "open" and not {"rb", "wb", "ab"} & set(words) and is_of_text(call.func)
        if (opens or name in ("read_text", "write_text")) and "encoding" not in {word.arg for word in call.keywords}:
            found.append(f"{where} {ast.unparse(call)}")
    assert found == []


def is_of_text(function: ast.expr) -> bool:
    """Whether it is the `open` of Python or of a path, and not that of an image, an archive or a descriptor."""
    owner = getattr(function, "value", None)
    return getattr(owner, "id", None) not in ("Image", "os", "tarfile", "member")


def test_the_results_table_is_imported_without_fcntl(tmp_path: Path) -> None:
    program = """if True:
        import signal, sys
        for name in ("fcntl", "grp", "pwd", "resource", "termios"):
            sys.modules[name] = None
        for name in ("SIGCHLD", "SIGHUP", "SIGKILL"):
            vars(signal).pop(name, None)
        from pathlib import Path
        from cs_models.errors import UserError
        from cs_models.evaluation.results import only_writer
        try:
            with only_writer(Path(sys.argv[1])):
                print("locked")
        except UserError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("locked" if sys.platform == "win32" else f"cannot lock the folder {tmp_path}")


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, **_: Any) -> bool:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("cs_models.locks.lock_descriptor", refuse)
    with pytest.raises(UserError, match=r"cannot lock the folder .*: Function"), only_writer(tmp_path):
        pass


def test_rows_end_as_written_where_descriptors_are_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""The C library of Windows writes "\r\n" for "\n", unless a file is opened with O_BINARY."""
    binary = results.BINARY or os.O_NOCTTY  # a flag that means nothing for a file
    open_usually, write_usually, of_text = os.open, os.write, set()

    def open_as_windows(path: Any, flags: int, mode: int = 0o777) -> int:
        descriptor = open_usually(path, flags, mode)
        (of_text.discard if flags & binary else of_text.add)(descriptor)
        return descriptor

    def write_as_windows(descriptor: int, content: bytes) -> int:
        written = content.replace(b"\n", b"\r\n") if descriptor in of_text else content
        write_usually(descriptor, written)
        return len(content)

    with monkeypatch.context() as windows:
        windows.setattr(results, "BINARY", binary)
        windows.setattr(os, "open", open_as_windows)
        windows.setattr(os, "write", write_as_windows)
        table = ResultsFile(tmp_path)
        table.repair()
        table.append(ROW)
        table.repair()
    assert b"\r" not in table.path.read_bytes()
    assert table.rows() == [ROW]


def patches(folder: Path, num_workers: int = 0) -> ResumableLoader:
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(8, 6)).save(folder / "a.png")
    module = PatchDataModule(
        train_sets=[str(folder)], validation_sets=[], crop_size=5, batch_size=2, num_workers=num_workers
    )
    module.setup("fit")
    return module.train_dataloader()


def test_batches_come_without_sigchld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGCHLD", raising=False)
    assert next(iter(patches(tmp_path))).shape == (2, 1, 5, 5)


def test_workers_get_their_images_however_processes_start(tmp_path: Path) -> None:
    """Windows and macOS send them to new processes."""
    batches = patches(tmp_path).dataset
    assert torch.equal(pickle.loads(pickle.dumps(batches))[3], batches[3])


@pytest.mark.parametrize(
    ("system", "forks"),
    [
        pytest.param("linux", True, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")),
        ("darwin", False),
        ("win32", False),
    ],
)
def test_workers_are_forked_on_linux_alone(
    system: str, forks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.patches.sys", SimpleNamespace(platform=system))
    context = patches(tmp_path, num_workers=1).multiprocessing_context
    assert (getattr(context, "_name", None) == "fork") == forks
    assert patches(tmp_path).multiprocessing_context is None


def test_training_outside_the_main_thread_sets_no_handler() -> None:
    handler, errors = signal.getsignal(signal.SIGTERM), []

    def start() -> None:
        try:
            StopOnSigterm().on_train_start(None, None)  # type: ignore[arg-type]
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGTERM) == handler


def is_device(name: str) -> bool:
    """Whether Windows takes it for a device, whatever follows a dot."""
    return name.casefold().partition(".")[0] in {
        "con",
        "prn",
        "aux",
        "nul",
        *(f"{d}{n}" for d in ("com", "lpt") for n in range(10)),
    }


@pytest.mark.parametrize(
    "text",
    [
        "Set11",
        "ddnm:model=C:\\x",
        'a<b>c:d"e/f\\g|h?i*j',
        "con",
        "NUL",
        "aux.png",
        "Com1",
        "..",
        "...",
        "a.",
        "a\tb\n",
        "",
    ],
)
def test_names_that_users_choose_become_names_that_windows_takes(text: str) -> None:
    name = slug(text)
    assert name
    assert not REFUSED_BY_WINDOWS & set(name)
    assert not name.endswith((".", " "))
    assert not is_device(name)


def test_names_stay_as_they_are_where_they_can() -> None:
    assert [slug(text) for text in ("Set11", "console", "omp:sparsity=8", "a.b")] == [
        "Set11", "console", "omp_sparsity=8", "a.b",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="such folders cannot be made there")
def test_an_evaluation_writes_no_name_that_windows_refuses(tmp_path: Path) -> None:
    folder, out = tmp_path / 'a:b "c"?', tmp_path / "out"
    folder.mkdir()
    Image.fromarray(np.zeros((33, 33), dtype=np.uint8)).save(folder / "con<1>.png")
    words = ["--datasets", str(folder), "--methods", "pinv,tv:iterations=1", "--ratios", "0.3", "--device", "cpu"]
    assert main([*words, "--save_images", "--out", str(out)]) == 0
    names = {part for path in out.rglob("*") for part in path.relative_to(out).parts}
    assert len(names) > 8
    assert [name for name in names if REFUSED_BY_WINDOWS & set(name) or is_device(name)] == []


@pytest.mark.parametrize("folder", ["C:\\models\\ddpm", "C:/models/ddpm", "/models/ddpm"])
def test_a_path_in_a_setting_keeps_its_drive(folder: str) -> None:
    assert parse_method(f"ddnm:model={folder}:steps=3").settings == (("model", folder), ("steps", "3"))


def test_a_checkpoint_on_a_drive_keeps_its_name() -> None:
    assert published_method("C:/zoo/ista_net_plus_10.safetensors") == published_method("ista_net_plus") is not None


def test_weights_are_copied_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("A required privilege is not held by the client")

    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    with _hub_with(str(weights), "alexnet.pth"):
        assert (Path(torch.hub.get_dir()) / "checkpoints/alexnet.pth").read_bytes() == b"weights"


@pytest.mark.parametrize(("system", "expected"), [("linux", 5 * 1024), ("darwin", 5), ("win32", np.nan)])
def test_peak_memory_is_in_bytes_on_every_system(system: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=5))
    monkeypatch.setitem(sys.modules, "resource", None if system == "win32" else usage)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", system)
    assert peak_resident_bytes() == pytest.approx(expected, nan_ok=True)


def test_types_are_shipped() -> None:
    for package in ("cs_models", "datamodules"):
        folder = Path(str(importlib.import_module(package).__path__[0]))
        assert (folder / "py.typed").is_file()
