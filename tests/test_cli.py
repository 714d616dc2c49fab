"""The command, configurations by name, class paths of earlier versions, precision, and folders of trainings."""

from __future__ import annotations

import importlib
import os
import stat
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from cs_models import __version__
from cs_models.cli import main as command
from cs_models.cli import train
from cs_models.cli.configs import RENAMED, find_config, renamed, with_configs_found
from cs_models.cli.training_cli import next_name, numbered_folders
from cs_models.errors import UserError
from cs_models.files import replacing
from cs_models.operators import BlockOperator, ColumnOperator, FourierOperator, make_operator
from cs_models.precision import computes_bf16
from cs_models.training.trainer import choose_precision
from cs_models.zoo import methods

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")

OLD_PATHS = [
    "cs_models.unfolding.coast.COASTModule",
    "cs_models.unfolding.ista_net.ISTANetModule",
    "cs_models.unfolding.ista_net_pp.ISTANetPPModule",
    "cs_models.diffusion.idm.IDMModule",
    "cs_models.learned.csnet_plus.CSNetPlusModule",
    "cs_models.learned.rk_ccsnet.RKCCSNetModule",
    "cs_models.diffusion.wiring.Wired",
    "cs_models.diffusion.injector.Injector",
    "cs_models.loggers.ContinuedCSVLogger",
    "cs_models.callbacks.Throughput",
    "cs_models.checkpoint_io.DurableCheckpointIO",
    "cs_models.sharding.FSDP",
]


@pytest.mark.parametrize("old", OLD_PATHS)
def test_class_paths_of_earlier_versions_lead_to_the_same_class(old: str) -> None:
    module, _, name = renamed(old).rpartition(".")
    assert hasattr(importlib.import_module(module), name)


def test_every_renamed_module_is_tried() -> None:
    assert {old for old in RENAMED if not any(path.startswith(old) for path in OLD_PATHS)} == set()


@pytest.mark.parametrize(
    "text", ["cs_models.unfoldings.x", "my.cs_models_unfolding", "cs_models.networks.unfolding.coast"]
)
def test_other_words_are_left_alone(text: str) -> None:
    assert renamed(text) == text


def test_a_configuration_of_an_earlier_version_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    new = (REPOSITORY / "configs/train/r_coast.yaml").read_text()
    old = new.replace("cs_models.networks.unfolding", "cs_models.unfolding").replace("training.loggers", "loggers")
    assert old != new
    (tmp_path / "old.yaml").write_text(old)
    with pytest.raises(SystemExit) as done:
        train.main(["fit", "--config", str(tmp_path / "old.yaml"), "--print_config"])
    assert done.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"] == "cs_models.networks.unfolding.coast.COASTModule"
    assert config["trainer"]["logger"]["class_path"] == "cs_models.training.loggers.ContinuedCSVLogger"


@pytest.mark.parametrize("name", ["r_coast", "configs/train/r_coast.yaml", "r_coast.yaml", "cpu", "override/cpu.yaml"])
def test_shipped_configurations_are_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(find_config(name, "train")).is_file()
    path = find_config(name, "train")
    assert with_configs_found(["fit", "--config", name], "train") == ["fit", "--config", path]
    assert with_configs_found(["fit", f"--config={name}"], "train") == ["fit", f"--config={path}"]


def test_a_file_of_the_users_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r_coast").write_text("trainer: {}")
    assert find_config("r_coast", "train") == "r_coast"


def test_an_unknown_configuration_is_one_line_with_the_nearest_name(capsys: pytest.CaptureFixture) -> None:
    assert train.main(["fit", "--config", "configs/train/r_cost.yaml"]) == 2
    assert (
        capsys.readouterr().err
        == "error: configuration not found: configs/train/r_cost.yaml; did you mean 'r_coast'?\n"
    )


def test_the_command(capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out.split()[-1] == __version__
    assert command.main([]) == 2
    assert command.main(["--help"]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert command.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'; did you mean 'train'?\n"
    assert command.main(["quickstart", "fast"]) == 2
    assert capsys.readouterr().err.startswith("error: quickstart takes no options")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_leads_to_a_program(name: str) -> None:
    module, _, function = command.COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("asked", "native", "chosen", "says"),
    [
        ("auto", True, "bf16-mixed", ""),
        ("auto", False, "32-true", ""),
        (None, False, "32-true", ""),
        ("16-mixed", False, "32-true", "is for GPUs"),
        ("16-mixed", True, "bf16-mixed", "is for GPUs"),
        ("bf16-mixed", True, "bf16-mixed", ""),
        ("bf16-mixed", False, "bf16-mixed", "15 times slower"),
        ("32-true", True, "32-true", ""),
    ],
)
def test_training_precision_on_a_cpu(
    asked: str | None,
    native: bool,
    chosen: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("cs_models.precision._processor_has_bf16", lambda: native)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert choose_precision(asked, CPU) == chosen  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (1 if says else 0)
    assert says in "".join(lines)


@pytest.mark.parametrize(
    ("capability", "native", "training"),
    [((9, 0), True, "bf16-mixed"), ((8, 0), True, "bf16-mixed"), ((7, 5), False, "16-mixed")],
)
def test_precision_on_a_gpu_is_by_its_capability(
    capability: tuple[int, int], native: bool, training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    assert computes_bf16(device) is native
    assert choose_precision("auto", device) == training
    assert choose_precision("16-mixed", device) == "16-mixed"


@pytest.mark.parametrize(
    ("limit", "native"),
    [
        ("AVX2", False),
        ("avx512_core_vnni", False),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE_AMX", True),
        ("ALL", True),
    ],
)
def test_onednn_may_be_told_to_do_without_bf16(limit: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs_models.precision._processor_has_bf16", lambda: True)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert computes_bf16(CPU) is native


def test_apple_processors_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs_models.precision._processor_has_bf16", lambda: True)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert not computes_bf16(CPU)
    assert not computes_bf16(torch.device("mps"))


@pytest.mark.parametrize("native", [True, False])
def test_an_evaluation_in_emulated_bf16_is_warned_of(
    native: bool,
    tiny_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("cs_models.precision._processor_has_bf16", lambda: native)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    words = ["eval", "--methods", "r_coast", "--iterations_per_layer", "1,1,1,1,1", "--datasets", str(tiny_images)]
    words += ["--limit", "1", "--ratios", "0.1", "--precision", "bf16", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(words) == 0
    assert ["15 times slower" in record.getMessage() for record in caplog.records] == [True] * (not native)


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="TensorBoard is installed")
def test_a_missing_package_is_one_line(tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["fit", "--config", "r_coast", f"--data.train_sets=[{tiny_images}]", "--trainer.logger=TensorBoardLogger"]
    assert train.main([*words, f"--trainer.logger.save_dir={tmp_path}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "tensorboard" in line.lower()


def test_trainings_have_folders_of_their_own(tmp_path: Path) -> None:
    assert next_name(numbered_folders(tmp_path, "net"), "net") == "net"
    for name in ("net", "net_2", "net_10", "net_pp", "net_x_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").touch()
    (tmp_path / "net_11").mkdir()  # nothing in it
    runs = numbered_folders(tmp_path, "net")
    assert [run.name for run in runs] == ["net", "net_2", "net_10"]
    assert next_name(runs, "net") == "net_11"
    assert next_name(numbered_folders(tmp_path, "net_x"), "net_x") == "net_x_3"


@pytest.mark.slow
def test_a_second_training_leaves_the_first_alone_and_last_goes_on_with_the_second(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--config", "r_coast", f"--data.train_sets=[{tiny_images}]", "--data.batches_per_epoch=1",
        "--data.batch_size=1", "--data.validation_sets=[]", "--trainer.enable_progress_bar=false",
        "--model.init_args.network.iterations_per_layer=[1, 1, 1, 1, 1]",
    ]  # fmt: skip
    assert train.main([*words, "--trainer.max_steps=1", "--ckpt_path=last"]) == 2
    assert "finds no checkpoint" in capsys.readouterr().err
    first, second = Path("runs/r_coast/model.safetensors"), Path("runs/r_coast_2/model.safetensors")
    assert train.main([*words, "--trainer.max_steps=1"]) == 0
    content = first.read_bytes()
    assert train.main([*words, "--trainer.max_steps=1"]) == 0
    assert str(second) in capsys.readouterr().out.splitlines()[-1]
    before = second.read_bytes()
    assert train.main([*words, "--trainer.max_steps=2", "--ckpt_path=last"]) == 0
    assert first.read_bytes() == content
    assert second.read_bytes() != before
    assert not Path("runs/r_coast_3").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_files_have_the_users_permissions(tmp_path: Path) -> None:
    from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
    from cs_models.training.weights import save_checkpoint

    before = os.umask(0o027)
    try:
        path = save_checkpoint(COASTModule(COASTConfig(layers=1, features=4)), tmp_path / "net.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_is_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new/a.txt"
    path.parent.mkdir()
    with replacing(path) as partial:
        partial.write_text("one")
    with pytest.raises(OSError, match="full"), replacing(path) as partial:
        _fill_the_disk(partial)
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def _fill_the_disk(path: Path) -> None:
    path.write_text("tw")
    raise OSError("the disk is full")


def test_an_installation_without_networks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "zoo", dict)
    with pytest.raises(UserError, match="there are no networks in"):
        methods.parse_methods(["zoo"], [0.1])


def test_a_ratio_that_no_shipped_network_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "zoo", lambda: {"ista_net_plus": {10: Path("ista_net_plus_10.safetensors")}})
    with pytest.raises(UserError, match=r"no shipped network has weights for ratio 0\.2"):
        methods.parse_methods(["zoo"], [0.2])


def test_a_class_of_the_users_own_is_found_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    source = "from cs_models.networks.unfolding.coast import COASTModule\nclass MyModule(COASTModule): name = 'mine'\n"
    Path("net_of_mine.py").write_text(source)
    with pytest.raises(SystemExit) as done:
        train.main(["fit", "--model.class_path=net_of_mine.MyModule", "--print_config"])
    sys.modules.pop("net_of_mine", None)  # of this test's folder
    assert done.value.code == 0
    assert "class_path: net_of_mine.MyModule" in capsys.readouterr().out


def test_operators_from_tensors_and_arrays() -> None:
    rows = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    block = make_operator(rows, 12 / 64, (20, 20))
    assert isinstance(block, BlockOperator)
    column = make_operator(rows[:, :60].numpy(), 12 / 60, (60, 20))
    assert isinstance(column, ColumnOperator)
    assert torch.equal(block.matrix[:, :60], column.matrix)
    assert isinstance(make_operator(torch.eye(16), 1 / 16, (16, 16)), FourierOperator)
    assert block.spec["sha256"] != make_operator(2 * rows, 12 / 64, (20, 20)).spec["sha256"]
    for wrong in (rows[0], rows * float("nan"), rows + 0j):
        with pytest.raises(UserError, match="the matrix holds"):
            make_operator(wrong, 0.1, (20, 20))
