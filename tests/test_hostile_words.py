"""Words, files and folders that nobody means: one line each, and neither memory, time nor another's file is lost."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cs_models.cli import evaluate, train
from cs_models.cli.main import main as cs_models_main
from cs_models.cli.training_cli import numbered_folders
from cs_models.cli.yaml_limits import check_yaml
from cs_models.errors import UserError, report
from cs_models.evaluation.iterates import main as iterates
from cs_models.evaluation.plan import Candidate
from cs_models.evaluation.report.cards import main as cards
from cs_models.evaluation.report.merge import main as merge
from cs_models.evaluation.results import ResultsFile, only_writer, read_rows
from cs_models.locks import holding
from cs_models.operators import make_operator
from cs_models.operators.principal import main as principal
from cs_models.reconstruction import Solution
from cs_models.zoo.methods import build_method
from datamodules.download import main as download
from tests.conftest import REPOSITORY
from tests.test_arrays import HOSTILE


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small picture."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / "a.png")
    return folder


def refused(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line that a program said before it ended with 2."""
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 1100
    return captured.err


METHODS = {
    "clomp:learning_rate=-1": "learning_rate",
    "clomp:learning_rate=0": "learning_rate",
    "clomp:neurons=1000000000": "neurons",
    "clomp:w_tv=nan": "w_tv",
    "clomp:w_lv=-1": "w_lv",
    "clomp:prior=os.system": "prior is a function",
    "pnp:denoiser={}": "denoiser is a function",
    "pnp:denoiser=os.system": "denoiser is a function",
    "lasso:weight=1e300": "weight",
    "fista:weight=inf": "weight",
    "tv:weight=-1": "weight",
    "iht:step=1e300": "step",
    "sp:sparsity=-3": "sparsity",
    "cosamp:tolerance=nan": "tolerance",
    "stomp:threshold=-1": "threshold",
    "ista:iterations=99999999999999999999": "iterations",
    "tv:time_limit=-1": "time_limit",
    "tv:iterations=" + "[" * 5000: "iterations",
    "tv:iterations=" + "9" * 5000: "iterations",
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[:40])
def test_settings_that_no_method_has(method: str) -> None:
    with pytest.raises(UserError, match=METHODS[method]):
        build_method(method, 0.3)


OPTIONS: dict[str, tuple[list[str], str]] = {
    "noise": (["--noise=1e300"], "--noise 1e+300"),
    "noise that is no number": (["--noise=nan"], "--noise expects a number"),
    "long method": ([f"--methods={'m' * 5000}"], "5,000 characters"),
    "long component": ([f"--datasets={'d' * 300}"], "unknown dataset"),
    "long file": ([f"--operator={'o' * 300}.npy"], "matrix file not found"),
    "long checkpoint": ([f"--methods={'c' * 300}.safetensors"], "checkpoint not found"),
    "long configuration": ([f"--config={'c' * 300}"], "configuration not found"),
    "name that is not UTF-8": (["--datasets=\udcff\udcfe"], "not UTF-8"),
    "method that is not UTF-8": (["--methods=tv\udcff"], "not UTF-8"),
    "folder that is not UTF-8": (["--out=a\udcff"], "not UTF-8"),
    "null character": (["--datasets=a\0b"], "null character"),
    "line break": (["--methods=a\nb"], "unknown method"),
    "no folder": (["--out="], "--out expects the name of a folder"),
    "no folder, in two words": (["--out", ""], "--out expects the name of a folder"),
    "a million processes": (["--devices=1000000", "--device=cpu"], "too many processes"),
    "depth": (["--limit=" + "[" * 5000], "--limit"),
    "block of 1,000,000,000": (["--operator=block:1000000000"], "cannot read the operator"),
    "block of 100,000": (["--operator=block:100000"], "of memory"),
    "block of 20,000": (["--operator=structured:20000"], "of memory"),
    "block of 5,000 digits": ([f"--operator=block:{'9' * 4000}"], "cannot read the operator"),
    "views": (["--operator=radon:999999999999"], "cannot read the operator"),
    "many views": (["--operator=radon:999999999"], "999999999 views"),
    "seed": (["--seed=99999999999"], "seed"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_nobody_means(case: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = OPTIONS[case]
    base = ["--methods=pinv", f"--datasets={images}", "--ratios=0.3", f"--out={tmp_path / 'out'}", "--device=cpu"]
    assert expected in refused(capsys, evaluate.main([*base, *words]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", ["--wandb=p", "--seeds=0,1", "--bits=8", "--devices=2", "--batch_size=2", "--limit=1", "--save_images"]
)
def test_what_has_no_effect_on_measurements_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--methods=pinv", "--measurements=y.npy", "--operator=block", "--shape=40,40", "--ratios=0.1", option]
    line = refused(capsys, evaluate.main(words))
    assert option.partition("=")[0] in line
    assert "no effect" in line


@pytest.mark.parametrize("shape", ["100000000000000000000,3", "1000000,1000000", "99999999,99999999"])
def test_shapes_that_no_machine_holds(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "y.npy", np.zeros(3))
    words = ["--methods=pinv", f"--measurements={tmp_path / 'y.npy'}", "--operator=pixel", "--ratios=0.1"]
    assert "of memory" in refused(capsys, evaluate.main([*words, f"--shape={shape}"]))


@pytest.mark.parametrize("spec", ["block", "column", "pixel", "transform2d", "radial", "cartesian", "radon"])
def test_operators_larger_than_the_memory(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs_models.host_memory.memory_available", lambda: 10**6)
    monkeypatch.setattr("cs_models.host_memory.SMALL", 0)
    with pytest.raises(UserError, match="of memory; there is"):
        make_operator(spec, 0.5, (200, 200))


@pytest.mark.parametrize("change", [{"seed": -1}, {"seed": 2**32}, {"noise_sigma": -1.0}, {"noise_sigma": math.nan}])
def test_arguments_of_an_operator(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        make_operator("pixel", 0.5, (8, 8), **change)


YAML = {
    "bomb": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "circle": "methods: &m [*m]\n",
    "deep": "methods: " + "[" * 10_000 + "]" * 10_000,
    "deep in lines": "".join(" " * n + "a:\n" for n in range(300)),
    "many": "methods: [" + "a, " * 30_000 + "a]",
    "long": "# " + "a" * 2**20,
}


@pytest.mark.parametrize("case", YAML)
@pytest.mark.parametrize("program", [evaluate.main, train.main])
def test_configurations_that_explode(
    case: str, program: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(YAML[case])
    assert "no configuration" in refused(capsys, program(["--config", str(tmp_path / "c.yaml")]))


def test_references_in_moderation_are_fine(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {d: *a}\n")
    check_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize("program", [cards, merge, iterates, principal, download, cs_models_main])
@pytest.mark.parametrize("words", [["--wrong"], ["m" * 5000], ["\udcff"]])
def test_programs_answer_in_one_line(
    program: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, program(words))


@pytest.mark.parametrize(
    "words",
    [
        ["add", "{root}", "", "--hardware", "one"],
        ["add", "{root}", "../a", "--hardware", "one"],
        ["add", "{root}/none", "a", "--hardware", "one"],
        ["write", "{root}/file"],
        ["write", ""],
        ["write", "{root}"],
    ],
)
def test_cards_of_nothing(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    refused(capsys, cards([word.replace("{root}", str(tmp_path)) for word in words]))


def test_a_line_stays_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(UserError("a\nb\x1b[31m\udcff" + "c" * 5000)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: a b\\x1b[31m\\udcffccc")
    assert line.count("\n") == 1
    assert len(line) < 1100


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"half a line", b"method\n", b"\x89PNG\r\n\x1a\n\x00", b"method,x"])
def test_a_table_of_another_program_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "per_image.csv").write_bytes(content)
    with pytest.raises(UserError, match="another kind or version"):
        ResultsFile(tmp_path).repair()
    assert (tmp_path / "per_image.csv").read_bytes() == content


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_half_a_header_of_ours_is_mended(kept: int, tmp_path: Path) -> None:
    ResultsFile(tmp_path).repair()
    whole = (tmp_path / "per_image.csv").read_bytes()
    (tmp_path / "per_image.csv").write_bytes(whole[:kept])
    ResultsFile(tmp_path).repair()
    assert (tmp_path / "per_image.csv").read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe"])
def test_a_broken_picture_does_not_stop_a_report(
    content: bytes, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods=pinv", f"--datasets={images}", "--ratios=0.3", f"--out={tmp_path}", "--device=cpu"]
    assert evaluate.main(words) == 0
    original = next((tmp_path / "images").rglob("original_*.png"))
    original.write_bytes(content)
    (tmp_path / "report.md").unlink()
    capsys.readouterr()
    assert evaluate.main(words) == 0
    assert (tmp_path / "report.md").exists()
    assert f"delete it to have it made again: {original}" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_picture_whose_name_is_not_utf8(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        (folder / Path(name.decode("utf-8", "surrogateescape"))).write_bytes((images / "a.png").read_bytes())
    out = tmp_path / "out"
    words = ["--methods=pinv", f"--datasets={folder}", "--ratios=0.3", f"--out={out}", "--device=cpu", "--save_images"]
    assert evaluate.main(words) == 0
    assert sorted(row.image for row in read_rows(out / "per_image.csv")) == [r"caf\xe8", r"caf\xe9"]
    assert len(list((out / "images").rglob("original_*.png"))) == 2


@pytest.mark.parametrize("last", [0, 1, 2])
def test_every_process_of_an_evaluation_holds_the_folder(last: int, tmp_path: Path) -> None:
    """Whichever of them is left, as where the others are killed; by exclusive locks, as all systems have them."""
    processes = [only_writer(tmp_path, first=number == 0) for number in range(3)]
    for process in processes:
        process.__enter__()
    for process in processes[:last] + processes[last + 1 :]:
        process.__exit__(None, None, None)
    for _ in range(2):
        with pytest.raises(UserError, match="another evaluation"), only_writer(tmp_path):
            pass
    processes[last].__exit__(None, None, None)
    with only_writer(tmp_path), only_writer(tmp_path, first=False):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows kills no process by a signal")
def test_processes_outlive_the_first_one_and_keep_the_folder(tmp_path: Path) -> None:
    """The first process is killed; what it started goes on, and nobody else is let in until it ends."""
    program = """if True:
        import os, subprocess, sys
        from pathlib import Path
        from cs_models.locks import holding
        folder, *words = sys.argv[1:]
        with holding(Path(folder), "evaluation", first=not words):
            if not words:
                subprocess.Popen([sys.executable, __file__, folder, "other"], stdin=sys.stdin)
            print("held", flush=True)
            sys.stdin.read()
    """
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "out")]
    places = {"env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **places) as first:  # type: ignore[call-overload]
        assert [first.stdout.readline() for _ in range(2)] == [b"held\n"] * 2
        first.kill()
        first.wait()
        for _ in range(2):
            with pytest.raises(UserError, match="another evaluation"), holding(tmp_path / "out", "evaluation"):
                pass
        first.stdin.close()
        first.stdout.read()  # until the other one has ended too
    with holding(tmp_path / "out", "evaluation"):
        pass


def test_a_folder_has_one_training(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "fit", "--config", "ista_net_pp", f"--data.train_sets=[{images}]", "--trainer.accelerator=cpu",
        f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.logger.init_args.name=run",
        "--trainer.logger.init_args.version=",
    ]  # fmt: skip
    with holding(tmp_path / "run", "training"):
        assert train.main([*words, "--ckpt_path=last"]) == 2
    assert "another training is writing" in capsys.readouterr().err.splitlines()[-1]


def test_processes_of_a_training_choose_one_folder(tmp_path: Path) -> None:
    """The first one's lock may be there before the others look for a folder."""
    with holding(tmp_path / "run", "training"), holding(tmp_path / "run", "training", first=False):
        assert numbered_folders(tmp_path, "run") == []
    (tmp_path / "run/metrics.csv").touch()
    assert numbered_folders(tmp_path, "run") == [tmp_path / "run"]


def test_a_training_that_is_stopped_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr(train, "train", interrupted)
    assert train.main(["fit"]) == 130
    assert capsys.readouterr().err == (
        "interrupted; the same command with --ckpt_path last goes on from the last checkpoint\n"
    )
    monkeypatch.setattr(train, "train", lambda words: sys.exit(128 + signal.SIGTERM))
    assert train.main(["fit"]) == 143
    assert capsys.readouterr().err.startswith("ended by SIGTERM; the same command with --ckpt_path last goes on")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train.main(["fit"]) == 143
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(train, "train", lambda words: sys.exit(3))
    with pytest.raises(SystemExit, match="3"):
        train.main(["fit"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one process alone")
@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("train.py", "cs_models.cli.train"),
        ("train.py fit --config ista_net_pp", "torch"),
        ("eval.py", "jsonargparse"),
        ("eval.py --methods pinv --datasets bundled --ratios 0.1", "numpy._core.multiarray"),
        ("eval.py --methods pinv --datasets bundled --ratios 0.1", "torch"),
        ("cs_models/__main__.py", "cs_models.cli.main"),
        ("cs_models/__main__.py list", "cs_models.cli.evaluate"),
    ],
)
def test_ctrl_c_during_an_import_is_one_line(words: str, module: str) -> None:
    program = """if True:
        import os, runpy, signal, sys
        module, *words = sys.argv[1:]
        class CtrlC:
            def find_spec(name, *_):
                if name == module:
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, CtrlC)
        sys.path.insert(0, "")
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    """
    command = [sys.executable, "-c", program, module, *words.split()]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (run.stderr, run.returncode) == ("interrupted\n", 130)


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1.\nmore"),
        RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2634\nmore"),
        RuntimeError("Broken pipe"),
    ],
)
def test_a_killed_process_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(train, "train", fail)
    assert "--ckpt_path last" in refused(capsys, train.main(["fit"]))
    monkeypatch.setattr(evaluate, "evaluate", fail)
    assert "the same command goes on" in refused(
        capsys, evaluate.main(["--methods=pinv", "--datasets=bundled", "--ratios=0.1"])
    )
    error.args = ("a fault of ours",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            train.main(["fit"])


WORDS = st.sampled_from(
    [
        *METHODS,
        *(
            "pinv",
            "tv",
            "linear",
            "bundled",
            "{images}",
            "{images}/a.png",
            "{images}/none",
            "{bomb}",
            "{bad}.npy",
            "zoo",
        ),
        *("{bad}.safetensors", "{bad}.ckpt", "r_coast", "0.3", "1e-300", "1e300", "nan", "-0", "1e5000", "9" * 5000),
        *(
            "block",
            "block:0",
            "block:100000",
            "block:pca:99",
            "structured:1",
            "radon:999999999999",
            "radon:3",
            "radial",
        ),
        *(
            "1,1",
            "16,16",
            "99999999999999999999,3",
            "-1,-1",
            "m" * 5000,
            "a\0b",
            "\udcff",
            "a\nb",
            "[" * 300,
            "&a [*a]",
        ),
        *("{", "!!python/object/apply:os.system [ls]", "*a", "cpu", "rgb", "true", "null", "", " ", "..", "/", "~"),
    ]
) | st.text(max_size=8)
CONTENTS = [
    b"\x80\x04\x95" * 9,
    struct.pack("<Q", 2**62) + b"{}",
    *(
        struct.pack("<Q", len(header)) + header.encode()
        for header in ("[" * 5000, "{}", '{"__metadata__": {"cs_models": "[]"}}')
    ),
    *HOSTILE.values(),
]  # what files hold, as checkpoints and arrays
NAMES = st.sampled_from(
    [
        *("methods", "datasets", "ratios", "limit", "channels", "image", "operator", "seed", "seeds", "noise", "bits"),
        *("measurements", "shape", "precision", "batch_size", "iterations_per_layer", "config", "data_dir", "devices"),
        *("tile", "tile_memory", "overlap", "lpips", "fid"),
    ]
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(NAMES, WORDS, max_size=3),
    extra=st.lists(WORDS, max_size=1),
    content=st.sampled_from(CONTENTS),
)
def test_no_command_line_gives_a_traceback(
    changes: dict[str, str],
    extra: list[str],
    content: bytes,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a command line that is taken, everything but the reconstructions is done."""
    monkeypatch.setattr("cs_models.evaluation.loop.run", lambda plan: [])
    monkeypatch.setattr(Candidate, "solve", lambda self, y, operator: Solution(y))
    bad = tmp_path / "bad"
    for suffix in (".npy", ".safetensors", ".ckpt"):
        bad.with_suffix(suffix).write_bytes(content)
    (tmp_path / "bomb.yaml").write_text(YAML["bomb"])
    filled = {"methods": "pinv", "datasets": str(images), "ratios": "0.3", "device": "cpu"} | changes
    if changes.keys() & {"image", "measurements"} and "datasets" not in changes:
        del filled["datasets"]
    words = [f"--{name}={value}" for name, value in filled.items()] + extra
    places = {"{images}": images, "{bomb}": tmp_path / "bomb.yaml", "{bad}": bad}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert evaluate.main([*words, f"--out={tmp_path / 'out'}"]) in (0, 2)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:] or not lines
