"""Settings that no training can have are refused before any data is read, in one line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs_models.cli import train
from cs_models.cli.training_checks import check_trainer
from cs_models.errors import UserError
from cs_models.networks.diffusion.idm import IDMConfig, IDMModule
from cs_models.networks.learned_sampling.csnet_plus import CSNetPlusConfig
from cs_models.networks.learned_sampling.opine_net import OPINENetConfig
from cs_models.networks.learned_sampling.rk_ccsnet import RKCCSNetConfig
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANetConfig
from cs_models.networks.unfolding.ista_net_pp import ISTANetPPConfig
from cs_models.networks.unfolding.scnet import SCNetConfig
from cs_models.networks.unfolding.sodas_net import SODASNetConfig
from cs_models.operators import Sampling
from cs_models.training.options import Training

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = {"batches_per_epoch": 1000}
ENDLESS = ["--trainer.max_steps=-1", "--trainer.max_epochs=-1"]


@pytest.mark.parametrize(
    "config", [COASTConfig, ISTANetConfig, ISTANetPPConfig, SCNetConfig, SODASNetConfig, OPINENetConfig]
)
@pytest.mark.parametrize(
    "change", [{"layers": 0}, {"layers": -1}, {"layers": 10**6}, {"features": 0}, {"features": 10**9}]
)
def test_sizes_of_unfolding_networks(config: Callable[..., object], change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(change))} must be at"):
        config(**change)


@pytest.mark.parametrize("config", [CSNetPlusConfig, RKCCSNetConfig])
@pytest.mark.parametrize("change", [{"blocks": 0}, {"blocks": 10**6}, {"features": -1}])
def test_sizes_of_networks_with_learned_sampling(config: Callable[..., object], change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(change))} must be at"):
        config(**change)


@pytest.mark.parametrize(
    "unet",
    [{"block_out_channels": (60_000, 60_000, 60_000, 60_000)}, {"layers_per_block": 10**6}, {"norm_eps": math.nan}],
)
def test_a_u_net_that_no_machine_holds(unet: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        IDMModule(IDMConfig(unet=unet))


def test_a_network_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs_models.host_memory.memory_available", lambda: 2**30)
    with pytest.raises(UserError, match="a network of 300 layers with 1000 features needs about 4"):
        COASTConfig(layers=300, features=1000)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ratios": (0.1, 0.3, 0.1)}, "names 0.1 twice"),
        ({"ratios": ()}, "at least one ratio"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"block_size": -1}, "block_size must be at least 1"),
        ({"block_size": 10**9}, "block_size must be at most"),
        ({"block_size": 20_000}, "of memory"),
        ({"matrices_per_ratio": 0}, "matrices_per_ratio must be at least 1"),
        ({"matrices_per_ratio": 10**6}, "matrices_per_ratio must be at most 1000"),
        ({"noise_sigma": -1.0}, "noise_sigma must be at least 0"),
        ({"noise_sigma": 1e300}, "noise_sigma must be at most"),
        ({"noise_sigma": math.nan}, "noise_sigma must be a finite number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 5_000_000}, "seed must be at most"),
    ],
)
def test_samplings_that_measure_nothing(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        Sampling(**change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rate": math.inf}, "learning_rate must be a finite"),
        ({"learning_rate": 1e300}, "learning_rate must be at most"),
        ({"step_factor": -0.5}, "step_factor must be at least 0"),
        ({"step_factor": 3.0}, "step_factor must be at most 1"),
        ({"step_every": 0}, "step_every must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"panel_images": -1}, "panel_images must be at least 0"),
        ({"ema_decay": math.nan}, "ema_decay must be in"),
        ({"milestones": (20, 10)}, "milestones must be steps above 0 in rising order"),
        ({"milestones": (0,)}, "milestones must be steps above 0"),
        ({"validation_ratios": (0.1, 0.1)}, "names 0.1 twice"),
        ({"cycle_weight": -1.0}, "cycle_weight must be at least 0"),
        ({"equivariance_weight": math.nan}, "equivariance_weight must be a finite"),
        ({"supervision": "sure", "log_loss": True}, "no logarithm"),
        ({"supervision": "measurements", "sampling": Sampling(kind="fourier")}, "fourier has none"),
        ({"supervision": "equivariant", "sampling": Sampling(matrices="learned")}, "no images to learn"),
    ],
)
def test_options_that_train_nothing(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Training(**change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be at least 1"),
        ({"accumulate_grad_batches": -4}, "accumulate_grad_batches must be at least 1"),
        ({"max_steps": -2}, "max_steps must be at least -1"),
        ({"max_epochs": -3}, "max_epochs must be at least -1"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val must be at least 0"),
        ({"gradient_clip_val": math.nan}, "gradient_clip_val must be a finite"),
        ({"num_nodes": 0}, "num_nodes must be at least 1"),
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch must be at least 1"),
        ({"limit_train_batches": -1}, "limit_train_batches must be at least 0"),
        ({"devices": -1}, "trainer.devices -1: expected a number of processes"),
        ({"devices": 0}, "trainer.devices 0"),
        ({"devices": [0]}, "trainer.devices"),
        ({"devices": "x"}, "trainer.devices x"),
        ({"devices": "-1"}, "trainer.devices -1"),
        ({"devices": []}, "trainer.devices"),
        *(
            ({"precision": other}, f"trainer.precision {other}: expected one of auto, 32-true")
            for other in ("16-true", "bf16-true", "64", 64, "64-true", "x")
        ),
        ({"strategy": "ddp_spawn"}, "use ddp"),
        ({"strategy": "ddp_notebook_find_unused_parameters_true"}, "use ddp"),
        ({"val_check_interval": 0}, "val_check_interval must be at least 1"),
        ({"val_check_interval": 0.0}, "above 0 and up to 1"),
        ({"val_check_interval": 2.5}, "above 0 and up to 1"),
        ({"val_check_interval": math.nan}, "above 0 and up to 1"),
        ({"val_check_interval": 1001}, "longer than an epoch of 1000 batches"),
        ({"val_check_interval": 20, "limit_train_batches": 10}, "longer than an epoch of 10 batches"),
    ],
)
def test_trainers_that_do_nothing(change: dict[str, Any], expected: str) -> None:
    base = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "check_val_every_n_epoch": 1}
    with pytest.raises(UserError, match=expected):
        check_trainer(base | change, DATA)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"devices": "2"},
        *({"precision": good} for good in (None, "auto", "32-true", 32, 16, "bf16-mixed")),
        {"devices": "auto"},
        {"val_check_interval": 0.1},
        {"val_check_interval": 1000},
        {"val_check_interval": 5000, "check_val_every_n_epoch": None},
        {"val_check_interval": "00:00:10:00"},
        {"max_steps": -1, "max_epochs": -1},
        {"limit_train_batches": 0.5, "gradient_clip_val": None},
    ],
)
def test_trainers_that_work(change: dict[str, Any]) -> None:
    base = {"accelerator": "cpu", "devices": 1, "strategy": "ddp", "check_val_every_n_epoch": 1}
    check_trainer(base | change, DATA)


@pytest.mark.parametrize(
    ("gpus", "devices", "works"),
    [(2, -1, True), (2, [0, 1], True), (2, "0,1", True), (2, [2], False), (0, [0], False), (2, "0,x", False)],
)
def test_numbers_of_gpus(gpus: int, devices: Any, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    settings = {"accelerator": "cuda", "devices": devices}
    if works:
        check_trainer(settings, DATA)
    else:
        with pytest.raises(UserError, match=r"trainer\.devices"):
            check_trainer(settings, DATA)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--trainer.devices=x"], "trainer.devices x"),
        (["--trainer.max_time=soon"], "trainer"),
        (["--trainer.precision=16-true"], "trainer.precision 16-true: expected one of auto"),
        (["--trainer.barebones=true"], "trainer"),
        (["--seed_everything=-1"], "seed_everything must be at least 0"),
        (["--data.channels=rgb"], "ista_net_pp takes luminance here, and data.channels is rgb"),
        (
            ["--trainer.max_steps=-1", "--trainer.max_epochs=-1", "--model.init_args.training.schedule=one_cycle"],
            "an end",
        ),
        (["--model.init_args.training.sampling.seed=5000000"], "seed must be at most"),
    ],
)
def test_nothing_is_read_before(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = REPOSITORY / "configs/train/ista_net_pp.yaml"
    base = [
        f"--config={config}",
        f"--data.data_dir={tmp_path}",
        "--data.train_sets=[none]",
        "--trainer.accelerator=cpu",
    ]
    words = ["fit", *base, f"--trainer.logger.init_args.save_dir={tmp_path}", *words]
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    with warnings.catch_warnings(record=True) as told:
        assert train.main(words) == 2
    assert not [warning for warning in told if not issubclass(warning.category, DeprecationWarning)]
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert expected in error
    assert not any(tmp_path.iterdir())


def test_a_users_own_network_may_take_colour() -> None:
    from cs_models.cli.training_checks import check_together

    class Data:
        channels = "rgb"
        measurements = None

    class Trainer:
        max_steps = max_epochs = -1

    class Own(COASTModule):
        pass

    module = Own(COASTConfig(layers=1, features=2))
    check_together(module, Trainer(), Data())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="coast takes luminance"):
        check_together(COASTModule(COASTConfig(layers=1, features=2)), Trainer(), Data())  # type: ignore[arg-type]
