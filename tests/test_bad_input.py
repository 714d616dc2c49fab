"""A user's mistake is told in one line, with exit status 2, and nothing that was computed is lost."""

from __future__ import annotations

import errno
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from cs_models.cli.evaluate import main
from cs_models.evaluation.results import only_writer, read_rows

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files of every kind."""
    root = tmp_path_factory.mktemp("world")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    for folder in ("good", "empty", "truncated", "small", "notes"):
        (root / folder).mkdir()
    Image.fromarray(pixels).save(root / "good/a.png")
    Image.fromarray(pixels[:33]).save(root / "good/b.png")
    (root / "other/good").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "other/good/a.png")
    (root / "truncated/broken.png").write_bytes((root / "good/a.png").read_bytes()[:200])
    Image.fromarray(pixels[:5]).save(root / "small/slim.png")
    (root / "notes/readme.txt").write_text("no image")
    np.save(root / "phi3.npy", np.zeros((2, 3, 4)))
    np.save(root / "phi_nan.npy", np.full((10, 64), np.nan))
    np.save(root / "phi_odd.npy", np.random.RandomState(0).randn(10, 63))
    np.save(root / "phi_tall.npy", np.random.RandomState(0).randn(80, 64))
    np.save(root / "phi_short.npy", np.random.RandomState(0).randn(10, 64))
    np.save(root / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(root / "y_wrong.npy", np.zeros((3, 7)))
    (root / "noise.npy").write_bytes(b"\x00\x01\x02")
    (root / "noise.safetensors").write_bytes(b"\x00\x01\x02")
    save_file({"weight": torch.zeros(2)}, root / "foreign.safetensors")
    save_file({"weight": torch.zeros(2)}, root / "no_json.safetensors", {"cs_models": "{"})
    save_file({"weight": torch.zeros(2)}, root / "other.safetensors", {"cs_models": '{"model": "resnet"}'})
    (root / "code.ckpt").write_bytes(pickle.dumps(Malicious(root / "executed")))
    (root / "file").write_text("a file, not a folder")
    (root / "typo.yaml").write_text("metods: [pinv]\n")
    (root / "wrong_type.yaml").write_text("limit: many\n")
    (root / "broken.yaml").write_text("methods: [pinv\n")
    (root / "config.yaml").write_text("config: 0\n")
    (root / "list.yaml").write_text("- pinv\n")
    (root / "foreign_table").mkdir()
    (root / "foreign_table/per_image.csv").write_text("a,b\n1,2\n")
    return root


class Malicious:
    """Runs code where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.target), "w")


def good(root: Path, **changes: str | None) -> list[str]:
    """A command line that works, but for the changes; None takes an option away."""
    options: dict[str, str | None] = {
        "methods": "pinv",
        "datasets": "good",
        "ratios": "0.3",
        "data_dir": str(root),
        "out": str(root / "out"),
        "device": "cpu",
    }
    options |= changes
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]


CASES: dict[str, tuple[dict[str, str | None], str]] = {
    "unknown method": ({"methods": "pinw"}, "did you mean 'pinv'?"),
    "unknown method in a list": ({"methods": "pinv,clmp"}, "did you mean 'clomp'?"),
    "no method": ({"methods": None}, "--methods"),
    "method twice": ({"methods": "pinv,pinv"}, "twice"),
    "unknown setting": ({"methods": "tv:iteration=3"}, "did you mean 'iterations'?"),
    "setting of another type": ({"methods": "tv:iterations=few"}, "iterations=few is not of type int"),
    "setting without a value": ({"methods": "tv:iterations"}, "key=value"),
    "setting out of range": ({"methods": "tv:iterations=0"}, "iterations"),
    "setting of a method without any": ({"methods": "pinv:a=1"}, "has no settings"),
    "missing checkpoint": ({"methods": "{root}/none.safetensors"}, "checkpoint not found"),
    "checkpoint that is noise": ({"methods": "{root}/noise.safetensors"}, "noise.safetensors"),
    "checkpoint of another program": ({"methods": "{root}/foreign.safetensors"}, "no checkpoint of this framework"),
    "checkpoint with a damaged header": ({"methods": "{root}/no_json.safetensors"}, "header is no JSON"),
    "checkpoint of an unknown model": ({"methods": "{root}/other.safetensors"}, "other.safetensors"),
    "checkpoint with code": ({"methods": "{root}/code.ckpt"}, "code.ckpt"),
    "unknown dataset": ({"datasets": "Set12"}, "did you mean 'Set11'?"),
    "dataset that is not there": ({"datasets": "BrainMRI"}, "BrainMRI"),
    "misspelt folder": ({"datasets": "goood"}, "did you mean 'good'?"),
    "no dataset": ({"datasets": None}, "--datasets"),
    "dataset and image": ({"image": "{root}/good/a.png"}, "give one of"),
    "one folder twice": ({"datasets": "good,{root}/other/../good"}, "are one set; name it once"),
    "empty folder": ({"datasets": "empty"}, "no images in"),
    "folder without images": ({"datasets": "notes"}, "no images in"),
    "truncated image": ({"datasets": "truncated"}, "broken.png"),
    "tiny image": ({"datasets": "small"}, "'slim'"),
    "missing image": ({"datasets": None, "image": "{root}/good/c.png"}, "c.png"),
    "ratio 0": ({"ratios": "0"}, "outside (0, 1]"),
    "ratio above 1": ({"ratios": "0.1,10"}, "outside (0, 1]"),
    "negative ratio": ({"ratios": "-0.1"}, "ratio"),
    "ratio that is no number": ({"ratios": "ten"}, "--ratios"),
    "ratio nan": ({"ratios": "nan"}, "outside (0, 1]"),
    "no ratio": ({"ratios": None}, "--ratios"),
    "unknown operator": ({"operator": "blok"}, "did you mean 'block'?"),
    "operator of no size": ({"operator": "block:big"}, "block:32"),
    "missing matrix": ({"operator": "{root}/phi.npy"}, "matrix file not found"),
    "matrix of three dimensions": ({"operator": "{root}/phi3.npy"}, "two dimensions"),
    "matrix that is not finite": ({"operator": "{root}/phi_nan.npy"}, "not finite"),
    "matrix that is noise": ({"operator": "{root}/noise.npy"}, "noise.npy"),
    "matrix with code": ({"operator": "{root}/pickled.npy"}, "pickled.npy"),
    "matrix of no block size": ({"operator": "{root}/phi_odd.npy", "ratios": "0.15"}, "63"),
    "matrix with too many rows": ({"operator": "{root}/phi_tall.npy"}, "80x64"),
    "matrix with too few rows": ({"operator": "{root}/phi_short.npy"}, "phi_short.npy has 10 rows"),
    "operator that the method cannot use": ({"methods": "pinv,linear", "operator": "column"}, "linear"),
    "limit 0": ({"limit": "0"}, "--limit"),
    "limit that is no number": ({"limit": "few"}, "--limit"),
    "seed below 0": ({"seed": "-1"}, "seed"),
    "seed twice": ({"seeds": "1,1"}, "twice"),
    "negative noise": ({"noise": "-1"}, "--noise"),
    "no bits": ({"bits": "0"}, "--bits"),
    "batches of nothing": ({"batch_size": "0"}, "--batch_size"),
    "unknown precision": ({"precision": "fp8"}, "--precision"),
    "unknown device": ({"device": "tpu"}, "--device"),
    "unknown channels": ({"channels": "cmyk"}, "--channels"),
    "schedule without a network": ({"iterations_per_layer": "2,2"}, "unfolding"),
    "unknown option": ({"metods": "pinv"}, "did you mean 'methods'?"),
    "missing YAML": ({"config": "{root}/none.yaml"}, "none.yaml"),
    "misspelt key in YAML": ({"config": "{root}/typo.yaml"}, "did you mean 'methods'?"),
    "wrong type in YAML": ({"config": "{root}/wrong_type.yaml"}, "--limit"),
    "broken YAML": ({"config": "{root}/broken.yaml"}, "config"),
    "YAML that is a list": ({"config": "{root}/list.yaml"}, "must name options"),
    "YAML that is no text": ({"config": "{root}/phi_short.npy"}, "cannot read the file of --config"),
    "YAML with a key of its own": ({"config": "{root}/config.yaml"}, "cannot read the file of --config"),
    "out is a file": ({"out": "{root}/file"}, "file"),
    "out below a file": ({"out": "{root}/file/results"}, "file"),
    "out with another table": ({"out": "{root}/foreign_table"}, "another kind or version"),
    "missing measurements": (
        {"datasets": None, "measurements": "{root}/none.npy", "operator": "block", "shape": "40,40"},
        "none.npy",
    ),
    "measurements of another shape": (
        {"datasets": None, "measurements": "{root}/y_wrong.npy", "operator": "block", "shape": "40,40"},
        "(3, 7)",
    ),
    "measurements with code": (
        {"datasets": None, "measurements": "{root}/pickled.npy", "operator": "block", "shape": "40,40"},
        "pickled.npy",
    ),
    "measurements without a shape": ({"datasets": None, "measurements": "{root}/y_wrong.npy"}, "--shape"),
    "measurements without an operator": (
        {"datasets": None, "measurements": "{root}/y_wrong.npy", "shape": "40,40"},
        "--operator",
    ),
    "shape without measurements": ({"shape": "40,40"}, "--shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line(case: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, expected = CASES[case]
    filled = {name: value and value.replace("{root}", str(world)) for name, value in changes.items()}
    assert main(good(world, **filled)) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "image/s" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert captured.out == ""


def test_code_in_a_checkpoint_is_not_run(world: Path) -> None:
    main(good(world, methods=str(world / "code.ckpt")))
    assert not (world / "executed").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_line(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(good(world, device="cuda")) == 2
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="needs modes of files; the superuser may write everywhere"
)
def test_a_folder_without_permission_is_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert main(good(world, out=str(tmp_path / "out"))) == 2
    assert "ermission" in capsys.readouterr().err


def test_wandb_that_is_not_installed_is_one_line(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "cs_models.evaluation.plan.find_spec", lambda name: None if name == "wandb" else find_spec(name)
    )
    assert main(good(world, wandb="project")) == 2
    assert "pip install wandb" in capsys.readouterr().err


def test_rows_before_a_broken_image_are_kept(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "late", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes((world / "good/a.png").read_bytes())
    (folder / "b.png").write_bytes((world / "truncated/broken.png").read_bytes())
    assert main(good(world, datasets=str(folder), out=str(out))) == 2
    assert "b.png" in capsys.readouterr().err
    assert [row.image for row in read_rows(out / "per_image.csv")] == ["a"]


def test_a_full_disk_keeps_whole_rows(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = os.write
    room = 900

    def write_until_full(descriptor: int, content: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, content[:room])
        room -= written
        return written

    monkeypatch.setattr("cs_models.evaluation.results.os.write", write_until_full)
    assert main(good(world, out=str(tmp_path), ratios="0.1,0.2,0.3,0.4,0.5")) == 2
    assert "No space left" in capsys.readouterr().err
    content = (tmp_path / "per_image.csv").read_bytes()
    assert content.endswith(b"\n")
    assert 1 <= len(list(read_rows(tmp_path / "per_image.csv"))) < 10


def test_two_writers_in_one_folder_are_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_writer(tmp_path):
        assert main(good(world, out=str(tmp_path))) == 2
    assert "another evaluation is writing" in capsys.readouterr().err
    assert main(good(world, out=str(tmp_path))) == 0


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_free(world: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from cs_models.evaluation.results import only_writer\n"
        "with only_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert main(good(world, out=str(tmp_path))) == 2
    holder.kill()
    holder.wait()
    assert main(good(world, out=str(tmp_path))) == 0


WORDS = st.sampled_from(
    [
        *(
            "pinv",
            "tv:iterations=1",
            "linear",
            "good",
            "empty",
            "truncated",
            "0.3",
            "1e-9",
            "inf",
            "0.1,0.2",
            "-1",
            "0",
        ),
        *("block", "block:2", "column", "pixel", "fourier", "structured:3", "rgb", "cpu", "1", "2,2", "40,40", ""),
        *("{root}/phi_short.npy", "{root}/noise.npy", "{root}/foreign.safetensors", "{root}/y_wrong.npy"),
        *("{root}/typo.yaml", "{root}/broken.yaml", "{root}/list.yaml", "{root}/good/a.png", "{root}/file", ":", "=,:"),
    ]
) | st.text(max_size=6)
OPTIONS = st.sampled_from(
    [
        *("methods", "datasets", "ratios", "limit", "channels", "image", "operator", "seed", "seeds", "noise", "bits"),
        *("measurements", "shape", "precision", "batch_size", "iterations_per_layer", "config", "save_imges", "out"),
    ]
)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=st.dictionaries(OPTIONS, WORDS, max_size=3), extra=st.lists(WORDS, max_size=1))
def test_no_command_line_gives_a_traceback(
    changes: dict[str, str], extra: list[str], world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    filled = {name: value.replace("{root}", str(world)) for name, value in changes.items()}
    # Results go where the test's own files are, whatever the words say.
    filled["out"] = str(world / "file") if changes.get("out") == "{root}/file" else str(tmp_path / "out")
    assert main([*good(world, **{"limit": "1", **filled}), *extra]) in (0, 2)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(
        OPTIONS,
        WORDS | st.integers(-2, 3) | st.floats() | st.none() | st.booleans() | st.lists(WORDS, max_size=2),
        max_size=2,
    )
)
def test_no_yaml_gives_a_traceback(changes: dict[str, object], world: Path, tmp_path: Path) -> None:
    content = {"methods": "pinv", "datasets": "good", "ratios": 0.3, "limit": 1, "device": "cpu"} | changes
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content).replace("{root}", str(world)), encoding="utf-8")
    assert main(["--config", str(config), "--data_dir", str(world), "--out", str(tmp_path / "out")]) in (0, 2)
