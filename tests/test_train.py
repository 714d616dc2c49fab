"""train.py through its real `main`: every shipped configuration, the command line's precedence, resuming."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cs_models import progress
from cs_models.cli import train
from cs_models.cli.spelling import check_spelling
from cs_models.errors import UserError
from cs_models.networks.unfolding.ista_net import ISTANetModule
from cs_models.operators import MeasurementOperator
from cs_models.training import curves
from cs_models.training.curves import curves_of
from cs_models.training.loggers import ContinuedCSVLogger
from cs_models.zoo.checkpoints import load_checkpoint
from tests.conftest import REPOSITORY
from tests.wandb_files import complete_records

CONFIGS = sorted((REPOSITORY / "configs/train").glob("*.yaml"))
SWEEPS = sorted((REPOSITORY / "configs/sweep").glob("*.yaml"))
OVERRIDES = sorted((REPOSITORY / "configs/train/override").glob("*.yaml"))
BASES = {
    "three_layers": "r_coast", "three_layers_not_recursive": "r_coast", "nine_layers_not_recursive": "r_coast",
    "fmu": "r_coast", "no_modulation": "r_coast", "crops": "r_coast", "cpu": "r_coast",
    "noise": "coast", "iterations_6": "rista_net_plus", "iterations_9": "rista_net_plus",
    "one_layer": "rista_net_plus", "loss_on_all": "ista_net_pp",
    "log_loss": "ista_net_pp", "three_percent": "ista_net_plus", "injectors": "csnet_plus", "wired": "rk_ccsnet",
    "learned_cpu": "csnet_plus",
    **{path.stem: "idm_small" for path in OVERRIDES if path.stem.startswith("idm_")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """ISTA-Net's first estimate comes from some patches: 20,000 of the few that there are here would take a second."""
    monkeypatch.setattr(ISTANetModule, "patches_for_start", 500)


def arguments(config: Path, images: Path, out: Path, *more: str) -> list[str]:
    """A run of two steps on the tiny images."""
    return [
        "fit", "--config", str(config), *more,
        f"--data.train_sets=[{images}]", f"--data.validation_sets=[{images}]", "--data.validation_limit=1",
        "--data.batches_per_epoch=2", "--data.batch_size=2", "--data.distinct_patches=4",
        "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--data.num_workers=0", "--trainer.precision=32-true",
        "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false",
        "--trainer.logger.class_path=cs_models.training.loggers.ContinuedCSVLogger",
        f"--trainer.logger.init_args.save_dir={out}", "--trainer.logger.init_args.name=run",
        "--trainer.logger.init_args.version=",
    ]  # fmt: skip


def fit(config: Path, images: Path, out: Path, *more: str, **changed: str) -> Path:
    """Train and return the run's folder; `changed` replaces arguments by their last word."""
    words = arguments(config, images, out, *more)
    for key, value in changed.items():
        words = [f"{word.split('=')[0]}={value}" if word.split("=")[0].endswith("." + key) else word for word in words]
    assert train.main(words) == 0
    return out / "run"


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_trains(config: Path, tiny_images: Path, tmp_path: Path) -> None:
    crop = yaml.safe_load(config.read_text())["data"]["crop_size"]
    smaller = [f"--data.crop_size={min(crop, 33)}"]
    if config.stem == "idm":
        # The weights of Stable Diffusion are not at hand; the same surgery on a U-Net of a few channels.
        unet = yaml.safe_load((config.parent / "idm_small.yaml").read_text())["model"]["init_args"]["network"]["unet"]
        small = {"model": {"init_args": {"network": {"pretrained": None, "unet": unet}}}}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
        smaller += ["--config", str(tmp_path / "small.yaml")]
    folder = fit(config, tiny_images, tmp_path, *smaller, max_steps="1", batches_per_epoch="1")
    module = load_checkpoint(folder / "model.safetensors")
    ratio = module.training_options.sampling.ratios[0]
    operator = module.default_operator(ratio, (70, 66))
    x = torch.rand(1, 1, 70, 66)
    assert module.reconstruct(operator(x), operator).isfinite().all()
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("val/psnr") for row in rows)
    assert any((folder / "panels").iterdir())


IN_ONE_PROCESS = [path for path in OVERRIDES if path.stem not in ("wandb", "wandb_artifacts", "fsdp")]


@pytest.mark.parametrize("override", IN_ONE_PROCESS, ids=lambda path: path.stem)
def test_every_override_trains(override: Path, tiny_images: Path, tmp_path: Path) -> None:
    base = BASES.get(override.stem, "ista_net_pp")
    small = [] if base == "idm_small" else ["--model.init_args.network.features=4"]
    if base in ("coast", "ista_net_pp"):  # instead of 20 that are alike; no override of theirs says how many
        small.append("--model.init_args.network.layers=2")
    if override.stem == "idm_not_pruned":  # the small U-Net has too few features for injectors in its deepest level
        small = ["--config", str(override.with_name("idm_no_injectors.yaml"))]
    config = REPOSITORY / f"configs/train/{base}.yaml"
    crop = "--data.crop_size=33"
    one_step = {"max_steps": "1", "batches_per_epoch": "1", "validation_sets": "[]"}
    folder = fit(config, tiny_images, tmp_path, "--config", str(override), *small, crop, **one_step)
    module = load_checkpoint(folder / "model.safetensors")
    written = yaml.safe_load(override.read_text()).get("model", {}).get("init_args", {}).get("network", {})
    for key, value in written.items():
        ours = json.loads(json.dumps(getattr(module.config, key)))
        # The U-Net's settings are written out in full.
        assert ({name: ours[name] for name in value} if isinstance(value, dict) else ours) == value


def test_wandb_offline(tiny_images: Path, tmp_path: Path, wandb_offline: None) -> None:
    """Training logs configuration, curves, pictures, learning rate and throughput to an offline run."""
    words = arguments(REPOSITORY / "configs/train/r_coast.yaml", tiny_images, tmp_path,
                      "--config", str(REPOSITORY / "configs/train/override/wandb.yaml"),
                      "--data.crop_size=33", "--model.init_args.network.features=4")  # fmt: skip
    words = [word for word in words if "logger" not in word]
    words += [f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.log_every_n_steps=1"]
    assert train.main(words) == 0
    import wandb

    wandb.finish()
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    complete_records(run)
    content = run.read_bytes()
    for word in (b"matrices_per_ratio", b"val/psnr_10", b"lr-AdamW", b"train/loss", b"panel/"):
        assert word in content
    assert list(run.parent.glob("files/media/images/panel/*.png"))


def test_checkpoints_become_artifacts_on_request(tiny_images: Path, tmp_path: Path, wandb_offline: None) -> None:
    artifacts = CONFIGS[0].parent / "override/wandb_artifacts.yaml"
    assert train.main(wandb_arguments(tiny_images, tmp_path, "--config", str(artifacts))) == 0
    import wandb

    wandb.finish()
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = [
        record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        for record in complete_records(run)
        if record.HasField("artifact") or record.request.HasField("log_artifact")
    ]
    models = [artifact for artifact in logged if artifact.type == "model"]
    (weights,) = [one for one in models if not one.name.startswith("model-")]
    models.remove(weights)
    assert models
    assert weights.name.startswith("coast-")
    assert set(weights.aliases) == {"latest", "step-2"}
    assert [entry.path for entry in weights.manifest.contents] == ["model.safetensors"]
    assert "latest" in models[-1].aliases
    assert [entry.path.endswith(".ckpt") for entry in models[-1].manifest.contents] == [True]


def wandb_arguments(images: Path, out: Path, *more: str) -> list[str]:
    """An offline run with the name of its own."""
    words = arguments(CONFIGS[0].parent / "r_coast.yaml", images, out, "--config",
                      str(CONFIGS[0].parent / "override/wandb.yaml"), *SMALL)  # fmt: skip
    words = [word for word in words if "logger" not in word]
    return [*words, f"--trainer.logger.init_args.save_dir={out}", *more]


def test_resuming_continues_the_wandb_run(tiny_images: Path, tmp_path: Path, wandb_offline: None) -> None:
    import wandb

    named = "--trainer.logger.init_args.version=mine"
    assert train.main(wandb_arguments(tiny_images, tmp_path, named)) == 0
    wandb.finish()
    words = wandb_arguments(tiny_images, tmp_path, named, "--ckpt_path=last", "--trainer.max_steps=3")
    assert train.main(words) == 0
    assert wandb.run is not None
    assert (wandb.run.id, wandb.run.settings.resume) == ("mine", "allow")
    wandb.finish()
    load_checkpoint(tmp_path / "cs-models/mine/model.safetensors")  # not where another run puts its own
    steps = torch.load(tmp_path / "cs-models/mine/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert steps == 3
    # offline-run-TIME-ID, and a number if both began within the same second
    assert {path.name.split("-")[3] for path in tmp_path.glob("wandb/offline-run-*")} == {"mine"}


def test_an_unnamed_wandb_run_cannot_be_resumed(
    tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train.main(wandb_arguments(tiny_images, tmp_path, "--ckpt_path=last")) == 2
    assert "--trainer.logger.init_args.version" in capsys.readouterr().err


def test_a_wandb_process_that_ended_is_one_line(
    tiny_images: Path,
    tmp_path: Path,
    wandb_offline: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    import wandb

    def log(*_: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr("wandb.Run.log", log)
    assert train.main(wandb_arguments(tiny_images, tmp_path)) == 2
    wandb.finish()
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "W&B: its process" in error
    assert "--ckpt_path last" in error


def test_a_missing_wandb_login_is_one_line(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import wandb

    wandb.teardown()  # it remembers the mode of earlier runs
    status = train.main(wandb_arguments(tiny_images, tmp_path))
    wandb.teardown()
    assert status == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: W&B: ")
    assert "WANDB_MODE=offline" in last


def sweep_words(sweep: dict[str, Any], last: bool = False) -> list[str]:
    """The command of a sweep's first or last draw, as an agent writes it."""
    drawn = [
        f"--{name}={about.get('values', [about.get('min')])[-last]}" for name, about in sweep["parameters"].items()
    ]
    return [*(word for word in sweep["command"] if not word.startswith("${")), *drawn]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_name_what_there_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    sweep = yaml.safe_load(path.read_text())
    assert sweep["program"] == "train.py"
    for last in (False, True):
        check_spelling(sweep_words(sweep, last))
    words = sweep_words(sweep)
    words[-1] = words[-1].replace("--data.batch_size", "--data.batch_syze")
    with pytest.raises(UserError, match="batch_size"):
        check_spelling(words)


def test_every_network_has_a_sweep() -> None:
    swept = {path.read_text().split("configs/train/")[1].split(".yaml")[0] for path in SWEEPS}
    assert {path.stem for path in CONFIGS} - swept == {"idm", "ista_net_plus_mri", "quickstart", "scnet_pca"}


def test_the_sweep_passes_arguments_that_train_takes(
    tiny_images: Path, tmp_path: Path, wandb_offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    sweep = yaml.safe_load((REPOSITORY / "configs/sweep/ista_net_pp.yaml").read_text())
    words = sweep_words(sweep)
    limits = [word for word in arguments(CONFIGS[0], tiny_images, tmp_path)[3:] if "logger" not in word]
    limits = [word for word in limits if "batch_size" not in word]
    small = [*SMALL, f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.log_every_n_steps=1"]
    assert train.main([*words, *limits, *small]) == 0
    import wandb

    wandb.finish()
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    complete_records(run)
    assert sweep["metric"]["name"].encode() in run.read_bytes()


SMALL = [
    "--data.crop_size=33", "--model.init_args.network.features=4", "--model.init_args.network.layers=2",
    "--model.init_args.network.iterations_per_layer=[2,2]", "--model.init_args.training.sampling.block_size=11",
]  # fmt: skip


def test_resumed_training_equals_uninterrupted(tiny_images: Path, tmp_path: Path) -> None:
    """Optimiser, schedule, moving average, data, operators and recursion go on where the checkpoint left them."""
    config = REPOSITORY / "configs/train/r_coast.yaml"
    options = [*SMALL, "--config", str(REPOSITORY / "configs/train/override/cpu.yaml"), "--data.crop_size=33",
               "--model.init_args.training.optimizer=muon", "--checkpoint.every_n_train_steps=3",
               "--checkpoint.save_top_k=-1"]  # fmt: skip
    whole = fit(config, tiny_images, tmp_path / "whole", *options, max_steps="5", batches_per_epoch="4")
    (middle,) = (whole / "checkpoints").glob("*step=3.ckpt")
    resumed = fit(
        config,
        tiny_images,
        tmp_path / "resumed",
        *options,
        f"--ckpt_path={middle}",
        max_steps="5",
        batches_per_epoch="4",
    )
    ours, theirs = (load_checkpoint(folder / "model.safetensors").state_dict() for folder in (resumed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # The weights did move after the checkpoint, so that equality means something.
    before = load_checkpoint(middle).state_dict()
    assert any(not torch.equal(before[key], theirs[key]) for key in theirs)


def test_resuming_the_last_checkpoint_of_an_epoch_equals_uninterrupted(tiny_images: Path, tmp_path: Path) -> None:
    """With no settings for checkpoints the last one is that of an epoch's end, or of the training's."""
    config = REPOSITORY / "configs/train/r_coast.yaml"
    whole = fit(config, tiny_images, tmp_path / "whole", *SMALL, max_steps="7", batches_per_epoch="3")
    theirs = load_checkpoint(whole / "model.safetensors").state_dict()
    for steps in ("3", "4"):
        out = tmp_path / steps
        fit(config, tiny_images, out, *SMALL, max_steps=steps, batches_per_epoch="3")
        more = [*SMALL, "--ckpt_path=last"]
        resumed = fit(config, tiny_images, out, *more, max_steps="7", batches_per_epoch="3")
        ours = load_checkpoint(resumed / "model.safetensors").state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), f"after {steps} steps"


def test_a_resumed_run_goes_on_in_its_curve(tiny_images: Path, tmp_path: Path) -> None:
    """The steps after the checkpoint, which were lost, are in the curve once."""
    config = REPOSITORY / "configs/train/r_coast.yaml"
    options = [*SMALL, "--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=2"]
    options += ["--checkpoint.save_top_k=-1", "--trainer.val_check_interval=2"]
    run = fit(config, tiny_images, tmp_path, *options, max_steps="3", batches_per_epoch="9")
    before = curve(run)
    drawn = drawn_points(run)
    assert drawn["train/loss"] == [1, 2, 3]
    assert [step for step, _ in before] == [0, 1, 2]
    (middle,) = (run / "checkpoints").glob("*step=2.ckpt")
    fit(config, tiny_images, tmp_path, *options, f"--ckpt_path={middle}", max_steps="5", batches_per_epoch="9")
    after = curve(run)
    assert [step for step, _ in after] == [0, 1, 2, 3, 4]
    assert after[:3] == before
    drawn = drawn_points(run)
    assert drawn["train/loss"] == [1, 2, 3, 4, 5]
    assert drawn["val/psnr"] == [2, 4]
    assert Image.open(run / "curves.png").width > 1000, "loss and validation"


def drawn_points(run: Path) -> dict[str, list[int]]:
    assert (run / "curves.png").exists()
    assert not list(run.glob("*.partial"))
    return {name: steps for name, (steps, _) in curves_of(run / "metrics.csv").items()}


def test_progress_and_a_picture_that_cannot_be_drawn_leave_the_training_alone(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no letters")

    monkeypatch.setattr(curves, "figure", fail)
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 1e-9)
    config = REPOSITORY / "configs/train/r_coast.yaml"
    with pytest.warns(UserWarning, match="was not drawn .no letters."):
        run = fit(config, tiny_images, tmp_path, *SMALL, "--trainer.log_every_n_steps=1", enable_progress_bar="true")
    assert not list(run.glob("curves*"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert [line.split(",")[0] for line in lines] == ["training: 1 of 2 steps", "training: 2 of 2 steps"]
    assert all(" left" in line for line in lines)
    assert "train/loss " in lines[-1]


@pytest.mark.parametrize("ratios", [0, 1, 3, 20])
def test_curves_of_any_number_of_ratios(ratios: int) -> None:
    points = ([1, 2], [20.0, 21.0])
    names = [f"val/psnr_{10 + index}" for index in range(ratios)]
    drawn = curves.figure(
        {"train/loss": ([1, 2], [-0.5, 0.1]), **dict.fromkeys(names + ["val/psnr"] * (ratios > 0), points)}
    )
    axes = drawn.axes
    assert len(axes) == (2 if ratios else 1)
    assert axes[0].get_yscale() == "linear", "the loss is not positive"
    if ratios:
        assert len(axes[1].lines) == (3 if ratios == 3 else 1)


def test_training_starts_from_the_weights_of_another_ratio(tiny_images: Path, tmp_path: Path) -> None:
    """The weights are those of the checkpoint, the matrix and its linear start are not."""
    config = REPOSITORY / "configs/train/rista_net_plus.yaml"
    options = [*SMALL, "--model.init_args.training.sampling.block_size=33", "--trainer.limit_val_batches=0"]
    first = fit(config, tiny_images, tmp_path / "first", *options)
    options += ["--model.init_args.training.sampling.ratios=[0.3]", "--model.init_args.training.learning_rate=0"]
    options += [f"--model.init_args.training.start_from={first / 'model.safetensors'}"]
    second = fit(config, tiny_images, tmp_path / "second", *options)
    ours, theirs = (load_checkpoint(run / "model.safetensors").network for run in (second, first))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (ours.q_init.shape, theirs.q_init.shape) == ((1089, 327), (1089, 109))
    assert ours.q_init.any()


def test_the_logarithm_of_the_loss_has_the_same_direction(tiny_images: Path, tmp_path: Path) -> None:
    """Adam's first step does not depend on the length of the gradient, so both losses end at the same weights."""
    config = REPOSITORY / "configs/train/ista_net_pp.yaml"
    options = [*SMALL, "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0"]
    plain = fit(config, tiny_images, tmp_path / "plain", *options, max_steps="1")
    options.append("--model.init_args.training.log_loss=true")
    log = fit(config, tiny_images, tmp_path / "log", *options, max_steps="1")
    (_, squared_error), (_, logarithm) = *curve(plain), *curve(log)
    assert float(logarithm) == pytest.approx(math.log(float(squared_error)), abs=1e-4)
    ours, theirs = (load_checkpoint(folder / "model.safetensors").state_dict() for folder in (log, plain))
    differences = torch.cat([(ours[key] - theirs[key]).abs().flatten() for key in theirs])
    assert differences.quantile(0.95) < 1e-6  # of a step of 1e-4; the rest has gradients as small as Adam's epsilon


def curve(run: Path) -> list[tuple[int, str]]:
    with open(run / "metrics.csv") as file:
        return [(int(row["step"]), row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_a_curve_that_was_being_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("loss,step\n0.5,0\n0.25,1\n0.1")
    logger = ContinuedCSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"loss": 0.125, "other": 1.0}, step=2)
    logger.save()
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["other"]) for row in rows] == [
        ("0", "0.5", ""), ("1", "0.25", ""), ("2", "0.125", "1.0"),
    ]  # fmt: skip


def test_the_command_line_wins_over_a_checkpoint(tiny_images: Path, tmp_path: Path) -> None:
    config = REPOSITORY / "configs/train/ista_net_pp.yaml"
    ratios = "--model.init_args.training.sampling.ratios"
    first = fit(config, tiny_images, tmp_path / "first", *SMALL, f"{ratios}=[0.25]")
    assert load_checkpoint(first / "model.safetensors").training_options.sampling.ratios == (0.25,)
    second = fit(
        config, tiny_images, tmp_path / "second", *SMALL, f"{ratios}=[0.5]",
        f"--ckpt_path={first / 'checkpoints/last.ckpt'}", max_steps="3",
    )  # fmt: skip
    assert load_checkpoint(second / "model.safetensors").training_options.sampling.ratios == (0.5,)


def test_checkpoints_of_training_load_without_code(tiny_images: Path, tmp_path: Path) -> None:
    folder = fit(REPOSITORY / "configs/train/ista_net_plus.yaml", tiny_images, tmp_path, *SMALL)
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert content["cs_models"]["network"]["features"] == 4
    from_ckpt, shared = load_checkpoint(folder / "checkpoints/last.ckpt"), load_checkpoint(folder / "model.safetensors")
    operator = shared.default_operator(0.1, (40, 40))
    y = operator(torch.rand(1, 1, 40, 40))
    assert torch.equal(from_ckpt.reconstruct(y, operator), shared.reconstruct(y, operator))


def test_linear_start_is_the_estimate_of_least_squared_error(tiny_images: Path, tmp_path: Path) -> None:
    """Q_init beats the back-projection by far on the blocks it was estimated from."""
    options = [*SMALL, "--model.init_args.training.sampling.block_size=33"]
    run = fit(REPOSITORY / "configs/train/ista_net_plus.yaml", tiny_images, tmp_path, *options)
    module = load_checkpoint(run / "model.safetensors")
    pixels = np.array(Image.open(tiny_images / "0.png"))[:33, :33]
    x = torch.from_numpy(pixels).float().reshape(1, 1, 33, 33) / 255
    operator = module.default_operator(0.1, (33, 33))
    y = operator(x)
    linear = (y @ module.network.q_init.T).reshape(x.shape)
    assert (linear - x).norm() < 0.2 * (operator.adjoint(y) - x).norm()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.init_args.network.layrs=3"], "layrs"),
        (["--model.init_args.training.learning_rate=fast"], "learning_rate"),
        (["--data.crop_sise=33"], "crop_sise"),
        (["--data.train_sets=[Set12]"], "Set12"),
        (["--data.data_dir=/no/such/folder", "--data.train_sets=[T91]"], "/no/such/folder"),
        (["--model.init_args.training.sampling.ratios=[1.5]"], "outside (0, 1]"),
        (["--model.init_args.network.iterations_per_layer=[1,1]"], "iterations_per_layer"),
        (["--model.class_path=cs_models.networks.unfolding.ista_net_pp.ISTANetPQ"], "ISTANetPQ"),
        (["--config=/no/such.yaml"], "/no/such.yaml"),
        (["--ckpt_path=/no/such.ckpt"], "/no/such.ckpt"),
        (["--data.crop_size=400"], "400x400"),
        (["--trainer.strategy=fsdp"], "choose ddp"),
        (["--model.init_args.training.learning_rate=-1"], "learning_rate must be at least 0"),
        (["--model.init_args.training.ema_decay=2"], "ema_decay must be in [0, 1)"),
        (
            [
                "--trainer.max_steps=-1",
                "--trainer.max_epochs=-1",
                "--trainer.max_time=00:00:00:05",
                "--model.init_args.training.schedule=cosine",
            ],
            "needs an end",
        ),
        (["--ckpt_path=checkpoints/ista_net_pp.safetensors"], "holds weights, not the state of a training"),
        (["--trainer.strategy.class_path=cs_models.training.sharding.FSDP"], "for IDM"),
        (["--trainer.accelerator=tpu"], "a package is missing"),
        (["--trainer.accelerator=abacus"], "abacus"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], expected: str, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = REPOSITORY / "configs/train/ista_net_pp.yaml"
    base = arguments(config, tiny_images, tmp_path)
    assert train.main([*base, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert expected in error


def test_noise_differs_between_the_batches_of_one_step(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    measure = MeasurementOperator.measure

    def noted(operator: MeasurementOperator, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seeds.append(generator.initial_seed())
        return measure(operator, x, generator)

    monkeypatch.setattr(MeasurementOperator, "measure", noted)
    fit(CONFIGS[0].parent / "r_coast.yaml", tiny_images, tmp_path, *SMALL, "--trainer.accumulate_grad_batches=2")
    assert len(set(seeds)) == len(seeds) == 4


@pytest.mark.parametrize("algorithm", ["value", "norm"])
def test_gradients_are_clipped_as_asked_in_bf16(
    algorithm: str, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for name in ("value", "norm"):
        monkeypatch.setattr(torch.nn.utils, f"clip_grad_{name}_", lambda *_, name=name: called.append(name))
    clip = "--trainer.gradient_clip_val=1", f"--trainer.gradient_clip_algorithm={algorithm}"
    fit(CONFIGS[0].parent / "r_coast.yaml", tiny_images, tmp_path, *SMALL, *clip, precision="bf16-mixed")
    assert set(called) == {algorithm}


@pytest.mark.parametrize("kind", ["cosine", "one_cycle"])
def test_a_resumed_schedule_ends_where_it_was_planned_to(
    kind: str, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = arguments(CONFIGS[0].parent / "r_coast.yaml", tiny_images, tmp_path, *SMALL)
    words.append(f"--model.init_args.training.schedule={kind}")
    assert train.main(words) == 0
    assert train.main([*words, "--ckpt_path=last", "--trainer.max_steps=4"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: the {kind} schedule of the checkpoint ends at step 2")


@pytest.mark.parametrize(
    ("config", "change", "expected"),
    [
        ("r_coast", ["--model.init_args.training.learning_rate=0.5"], "trained with learning_rate = 0.0001"),
        ("r_coast", ["--model.init_args.network.features=8"], "network has features = 4"),
        ("ista_net_pp", [], "holds the network coast"),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    config: str, change: list[str], expected: str, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = CONFIGS[0].parent
    assert train.main(arguments(folder / "r_coast.yaml", tiny_images, tmp_path, *SMALL)) == 0
    words = arguments(folder / f"{config}.yaml", tiny_images, tmp_path, *SMALL, "--ckpt_path=last")
    assert train.main([*words, "--trainer.max_steps=4", *change]) == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_no_configuration_is_one_line_that_says_where_they_are(subcommand: str, capsys: pytest.CaptureFixture) -> None:
    assert train.main([subcommand]) == 2
    assert "--config configs/train/NAME.yaml" in capsys.readouterr().err.strip().splitlines()[-1]


def test_help_is_short_and_needs_no_heavy_imports(capsys: pytest.CaptureFixture) -> None:
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert len(text.splitlines()) < 30
    assert train.main([]) == 2
