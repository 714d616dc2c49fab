"""Checkpoints that were made to do harm, or were damaged: one line each, and no more memory than the file has bytes."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cs_models.errors import UserError
from cs_models.networks.learned_sampling.rk_ccsnet import RKCCSNetConfig, RKCCSNetModule
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANetConfig, ISTANetModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.operators import Sampling
from cs_models.settings import plain_values
from cs_models.training.checkpoint_io import DurableCheckpointIO
from cs_models.training.options import Training
from cs_models.training.weights import load_weights, save_checkpoint
from cs_models.zoo.checkpoints import load_checkpoint, main
from cs_models.zoo.import_official import main as import_official

SMALL = ISTANetConfig(layers=1, features=2)
TRAINING = UnfoldingTraining(Sampling(ratios=(0.25,), block_size=4))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with a matrix, as `.safetensors`."""
    return save_checkpoint(ISTANetModule(SMALL, TRAINING), tmp_path_factory.mktemp("good") / "net.safetensors")


def parts(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["cs_models"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def edited(header: dict[str, Any], where: str, value: object) -> dict[str, Any]:
    """A header with one value changed, its place written as a.b.c."""
    *folders, last = where.split(".")
    inner = header
    for folder in folders:
        inner = inner[folder]
    inner[last] = value
    return header


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


EDITS: dict[str, tuple[str, object, str]] = {
    "block size of 10^9": ("training.sampling.block_size", 10**9, "block_size must be at most"),
    "block size of 5,000": ("training.sampling.block_size", 5000, "which the file does not have"),
    "block size of -1": ("training.sampling.block_size", -1, "block_size must be at least 1"),
    "block size that is text": ("training.sampling.block_size", "33", "block_size is '33'; expected int"),
    "features of -1": ("network.features", -1, "features must be at least 1"),
    "features of 10^12": ("network.features", 10**12, "features must be at most"),
    "features of 1,000": ("network.features", 1000, "misshapen"),
    "features that are true": ("network.features", True, "expected int"),
    "features in parts": ("network.features", 2.5, "expected int"),
    "a million layers": ("network.layers", 10**6, "layers must be at most 1000"),
    "500 layers": ("network.layers", 500, "500 layers"),
    "two layers": ("network.layers", 2, "missing"),
    "no layers": ("network.layers", None, "expected int"),
    "rows of 10^9": ("network.rows", 10**9, "rows must be at most"),
    "rows of a million": ("network.rows", 2**20, "misshapen"),
    "schedule of 10^15 iterations": ("network.iterations_per_layer", [10**15], "iterations_per_layer"),
    "schedule that is text": ("network.iterations_per_layer", "4,4", "iterations_per_layer"),
    "unknown variant": ("network.variant", "minus", "variant"),
    "unknown setting": ("network.depth", 3, "no setting 'depth'"),
    "network that is a list": ("network", [1], "'network'"),
    "training that is missing": ("training", None, "'training'"),
    "sampling that is a number": ("training.sampling", 3, "training.sampling"),
    "ratios that are text": ("training.sampling.ratios", "0.1", "ratios"),
    "ratio of 10^300": ("training.sampling.ratios", [1e300], "outside (0, 1]"),
    "carried matrix of 40 TB": ("carried", {"phi_4": [10**6, 10**7]}, "it carries the matrices"),
    "carried matrix that is not there": ("carried", {"phi_4": [4, 16], "phi_5": [5, 16]}, "it carries the matrices"),
    "carried shape of text": ("carried", {"phi_4": "4x16"}, "it carries the matrices"),
    "model that is a list": ("model", ["ista_net"], "'model'"),
    "unknown model": ("model", "os:system", "unknown model"),
    "provenance that is deep": ("provenance", {"a": deep(200)}, "nested deeper"),
    "number of 30 digits": ("provenance", {"a": 10**30}, "63 bits"),
}


@pytest.mark.parametrize("case", EDITS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_header_is_not_believed(case: str, suffix: str, good: Path, tmp_path: Path) -> None:
    where, value, expected = EDITS[case]
    header, tensors = parts(good)
    path = tmp_path / f"net{suffix}"
    write(path, edited(header, where, value), tensors)
    with pytest.raises(UserError, match="net") as refusal:
        load_checkpoint(path)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def write(path: Path, header: object, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".ckpt":
        torch.save({"cs_models": header, "state_dict": tensors}, path)
    else:
        save_file(tensors, path, {"cs_models": json.dumps(header)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000 + "]" * 100_000, "no JSON of ours"),
        ('{"model": ' + "9" * 5000 + "}", "no JSON of ours"),
        ('{"model": "' + "a" * 2**20 + '"}', "no JSON of ours"),
        ("[1, 2]", "expected names and values"),
        ("null", "expected names and values"),
        ("{}", "'model'"),
    ],
)
def test_a_text_that_is_no_header(text: str, expected: str, good: Path, tmp_path: Path) -> None:
    _, tensors = parts(good)
    save_file(tensors, tmp_path / "net.safetensors", {"cs_models": text})
    with pytest.raises(UserError, match=expected):
        load_checkpoint(tmp_path / "net.safetensors")


class Code:
    """Would be imported where it is unpickled."""


STATES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "int": lambda state: 3,
    "list": lambda state: [state],
    "set": lambda state: set(state),
    "nothing": lambda state: None,
    "numbers as names": lambda state: dict(enumerate(state.values())),
    "numbers as weights": lambda state: dict.fromkeys(state, 3),
    "meta tensors": lambda state: {key: value.to("meta") for key, value in state.items()},
    "sparse tensors": lambda state: {key: value.to_sparse() for key, value in state.items()},
    "one number for all": lambda state: {key: torch.zeros(()).expand(value.shape) for key, value in state.items()},
    "no tensor": lambda state: {},
    "class of ours": lambda state: Code(),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_of_another_type(case: str, good: Path, tmp_path: Path) -> None:
    header, tensors = parts(good)
    path = tmp_path / "net.ckpt"
    torch.save({"cs_models": header, "state_dict": STATES[case](tensors)}, path)
    for read in (load_checkpoint, lambda file: load_weights(ISTANetModule(SMALL, TRAINING).network, file)):
        with pytest.raises(UserError, match=r"net\.ckpt") as refusal:
            read(path)
        assert "weights_only" not in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [3, [1], {1, 2}, {}, {"cs_models": 1}, {"state_dict": {}}, None])
def test_a_file_that_holds_something_else(content: object, tmp_path: Path) -> None:
    path = tmp_path / "net.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"net\.ckpt"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="no checkpoint of a training"):
        DurableCheckpointIO().load_checkpoint(path)


def test_values_that_refer_to_themselves_or_grow(good: Path, tmp_path: Path) -> None:
    _, tensors = parts(good)
    circle: list[Any] = []
    circle.append(circle)
    bomb: list[Any] = ["a"]
    for _ in range(60):
        bomb = [bomb] * 10
    for number, value in enumerate([circle, bomb]):
        write(tmp_path / f"{number}.ckpt", {"model": value}, tensors)
        with pytest.raises(UserError, match="nested deeper than 64 levels, or of more than"):
            load_checkpoint(tmp_path / f"{number}.ckpt")
    with pytest.raises(UserError, match="it holds a set"):
        plain_values({"a": {1}})


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_any_flipped_byte_is_noticed(suffix: str, good: Path, tmp_path: Path) -> None:
    header, tensors = parts(good)
    path = tmp_path / f"net{suffix}"
    if suffix == ".ckpt":
        write(path, header, tensors)
    else:
        path.write_bytes(good.read_bytes())
    content = path.read_bytes()
    places = range(len(content) - 500, len(content), 50) if suffix == ".safetensors" else _of_tensors(path)
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="is damaged"):
            load_checkpoint(path)
    path.write_bytes(content)
    assert load_checkpoint(path).name == "ista_net"


def _of_tensors(path: Path) -> list[int]:
    """Where the numbers of each tensor in a file of torch begin."""
    with zipfile.ZipFile(path) as archive:
        starts = [entry.header_offset for entry in archive.infolist() if "/data/" in entry.filename]
    content = path.read_bytes()
    lengths = (struct.unpack_from("<HH", content, start + 26) for start in starts)
    return [start + 30 + name + extra for start, (name, extra) in zip(starts, lengths, strict=True)]


def test_a_flipped_byte_in_a_training_is_noticed(good: Path, tmp_path: Path) -> None:
    header, tensors = parts(good)
    path = tmp_path / "step=3.ckpt"
    torch.save({"cs_models": header, "state_dict": tensors, "global_step": 3}, path)
    assert DurableCheckpointIO().load_checkpoint(path)["global_step"] == 3
    content = bytearray(path.read_bytes())
    content[_of_tensors(path)[0]] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        DurableCheckpointIO().load_checkpoint(path)


def test_a_file_without_a_digest_still_loads(good: Path, tmp_path: Path) -> None:
    header, tensors = parts(good)
    write(tmp_path / "old.safetensors", header, tensors)
    assert load_checkpoint(tmp_path / "old.safetensors").carried.shapes() == {"phi_4": [4, 16]}


def test_a_checkpoint_names_no_other_file(tmp_path: Path) -> None:
    header = {
        "model": "idm",
        "network": {"pretrained": "owner/name"},
        "training": {"sampling": {}},
        "carried": {},
        "provenance": {},
    }
    write(tmp_path / "net.safetensors", header, {"network.alphas": torch.zeros(3)})
    with pytest.raises(UserError, match="pretrained names a file outside"):
        load_checkpoint(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "unet",
    [
        {"layers_per_block": 10**9},
        {"block_out_channels": [32] * 10**4},
        {"block_out_channels": [10**9, 10**9]},
        {"block_out_channels": []},
        {"down_block_types": ["os.system"]},
        {"attention_head_dim": 0},
        {"norm_num_groups": 0},
        {"transformer_layers_per_block": [[10**7]]},
    ],
)
def test_a_u_net_is_not_believed(unet: dict[str, object], tmp_path: Path) -> None:
    header = {"model": "idm", "network": {"unet": unet}, "training": {"sampling": {}}, "carried": {}, "provenance": {}}
    write(tmp_path / "net.safetensors", header, {"network.alphas": torch.zeros(3)})
    with pytest.raises(UserError) as refusal:
        load_checkpoint(tmp_path / "net.safetensors")
    assert "\n" not in str(refusal.value)


def test_a_block_that_no_weight_depends_on(tmp_path: Path) -> None:
    """RK-CCSNet's weights are the same for every size of block, and it keeps all pixels of one."""
    header = {
        "model": "rk_ccsnet",
        "network": {"features": 2, "blocks": 1},
        "training": {"sampling": {"ratios": [0.25], "block_size": 8}},
        "carried": {},
        "provenance": {},
    }
    sampling = Sampling(ratios=(0.25,), block_size=8)
    module = RKCCSNetModule(RKCCSNetConfig(features=2, blocks=1), Training(sampling))
    tensors = {f"network.{name}": value.contiguous() for name, value in module.network.state_dict().items()}
    write(tmp_path / "net.safetensors", header, tensors)
    assert load_checkpoint(tmp_path / "net.safetensors").name == "rk_ccsnet"
    edited(header, "training.sampling.block_size", 2000)
    write(tmp_path / "net.safetensors", header, tensors)
    with pytest.raises(UserError, match="of memory"):
        load_checkpoint(tmp_path / "net.safetensors")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(10**7))
    with pytest.raises(UserError, match="more than its"):
        load_checkpoint(path)


def test_a_file_larger_than_the_memory(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, tensors = parts(good)
    write(tmp_path / "net.ckpt", header, tensors)
    monkeypatch.setattr("cs_models.host_memory.memory_available", lambda: 100)
    monkeypatch.setattr("cs_models.host_memory.SMALL", 0)
    for path in (good, tmp_path / "net.ckpt"):
        with pytest.raises(UserError, match="of memory"):
            load_checkpoint(path)


@pytest.mark.parametrize("where", ["", ".", "{root}", "{root}/file/net.safetensors", "{root}/" + "a" * 5000, "a\0b"])
def test_a_place_that_cannot_be_written(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    module = COASTModule(COASTConfig(layers=1, features=2))
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        save_checkpoint(module, where.replace("{root}", str(tmp_path)))


@pytest.mark.parametrize("program", [main, import_official])
@pytest.mark.parametrize("words", [[], ["--wrong"], ["a" * 5000, "--out", "x"], ["net.pkl", "\udcff", "--out", "x"]])
def test_programs_answer_in_one_line(
    program: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 1100
