"""Trainings that are shared, killed, told to stop, starved of disk and fed with nonsense: real processes throughout."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from cs_models.errors import UserError
from cs_models.training.checkpoint_io import DurableCheckpointIO
from cs_models.training.lightning import LightningTraining
from cs_models.zoo.checkpoints import load_checkpoint
from tests import forked
from tests.conftest import REPOSITORY
from tests.test_train import arguments, wandb_arguments
from tests.wandb_files import complete_records
from tests.wandb_server import WandbServer

if sys.platform == "win32":
    pytest.skip("these tests fork processes and send them POSIX signals", allow_module_level=True)

CONFIGS = REPOSITORY / "configs/train"
SMALL = (
    "--data.crop_size=33", "--model.init_args.network.features=4",
    "--model.init_args.training.sampling.block_size=11",
)  # fmt: skip


class KillAt(pl.Callback):
    """SIGKILL to its own process in some hook of some step; nothing can be tidied up."""

    def __init__(self, hook: str, step: int) -> None:
        def kill(trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        if hook != "writing":
            setattr(self, hook, kill)
            return
        replace = Path.replace
        self._writes = 0

        def die_half_way(path: Path, target: Path) -> Path:
            if path.suffix == ".partial" and target.name == "last.ckpt":
                self._writes += 1
                if self._writes == step:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        Path.replace = die_half_way  # type: ignore[method-assign] (the process ends with it)


class SpoilLoss(pl.Callback):
    """Makes the images of some batches of some ranks infinite."""

    def __init__(self, batches: list[int], rank: int = 0) -> None:
        self.batches, self.rank = batches, rank

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LightningTraining)
        loss = pl_module.method.training_loss

        def spoiled(*tensors: Any) -> torch.Tensor:
            bad = trainer.global_rank == self.rank and pl_module.global_step in self.batches
            return loss(*tensors) * (float("nan") if bad else 1)

        pl_module.method.training_loss = spoiled  # type: ignore[method-assign]


class SignalAt(pl.Callback):
    """A signal to one process, or to the whole group with its data workers, in the middle of a step."""

    def __init__(self, step: int, rank: int = 0, group: bool = False) -> None:
        self.step, self.rank, self.group = step, rank, group

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            (os.killpg if self.group else os.kill)(os.getpid(), signal.SIGTERM)


class KillWorker(pl.Callback):
    """SIGKILL to a data worker, as a machine out of memory does."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()


def callback(cls: type[pl.Callback], **settings: Any) -> list[str]:
    """Arguments that add a callback."""
    name = f"tests.test_long_runs.{cls.__name__}"
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in settings.items())]


def finish(
    words: list[str], folder: Path, processes: int = 1, strategy: Sequence[str] = ("--trainer.strategy=ddp",)
) -> tuple[list[int], str]:
    """Run a training, in several processes as torchrun does it; their exit statuses, and what they printed."""
    shared: dict[str, str] = {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
        words = [*words, f"--trainer.devices={processes}", *strategy]
    logs = [folder / f"log{rank}" for rank in range(processes)]
    started = []
    for rank, log in enumerate(logs):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(forked.start("train.py", words, log, **shared, **ranks))
    statuses = [forked.finished(process, 300) for process in started]
    return statuses, "\n".join(log.read_text() for log in logs)


def r_coast(images: Path, out: Path, *more: str) -> list[str]:
    """R-COAST with everything that has a state: schedule, moving average, random recursion, crops, 3 steps an epoch."""
    words = arguments(
        CONFIGS / "r_coast.yaml", images, out, "--config", str(CONFIGS / "override/cpu.yaml"), *SMALL,
        "--checkpoint.every_n_train_steps=2", "--model.init_args.network.layers=2",
        "--model.init_args.network.iterations_per_layer=[2,2]",
    )  # fmt: skip
    changed = {"--trainer.max_steps": 8, "--data.batches_per_epoch": 3, "--data.validation_sets": "[]"}
    return [*words, *(f"{key}={value}" for key, value in changed.items()), *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "run/model.safetensors").state_dict()


def assert_same_weights(ours: Path, theirs: Path) -> None:
    expected = weights(theirs)
    assert all(torch.equal(value, expected[key]) for key, value in weights(ours).items())


@pytest.fixture(scope="session")
def uninterrupted(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training that nothing happened to."""
    out = tmp_path_factory.mktemp("uninterrupted")
    assert finish(r_coast(tiny_images, out), out)[0] == [0]
    return out


@pytest.fixture(scope="session")
def half_done(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was killed in its seventh step; its last checkpoint is of the sixth."""
    out = tmp_path_factory.mktemp("half_done")
    words = r_coast(tiny_images, out, *callback(KillAt, hook="on_before_optimizer_step", step=6))
    assert finish(words, out)[0] == [-signal.SIGKILL]
    return out


# Sharing


SMALLEST = {
    "ista_net_pp": ["--model.init_args.network.layers=2", "--model.init_args.network.features=4"],
    "r_coast": list(SMALL),
    "idm_small": [
        "--model.init_args.network.unet.block_out_channels=[16,16,16,16]",
        "--model.init_args.network.unet.norm_num_groups=4", "--model.init_args.network.steps=2",
        "--data.crop_size=32",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ista_net_pp", "r_coast", "idm_small"])
def test_two_processes_with_half_the_batch_give_the_weights_of_one(
    name: str, tiny_images: Path, tmp_path: Path
) -> None:
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        words = arguments(CONFIGS / f"{name}.yaml", tiny_images, out, "--data.crop_size=33", *SMALLEST[name])
        words += ["--trainer.max_steps=3", "--data.batches_per_epoch=3", f"--data.batch_size={4 // processes}"]
        words += ["--data.validation_sets=[]"]
        assert finish(words, out, processes)[0] == [0] * processes
        state = torch.load(out / "run/checkpoints/last.ckpt", weights_only=True)
        assert state["global_step"] == 3
    assert_nearly_same_weights(tmp_path / "1", tmp_path / "2", 3, 1e-3 if name == "idm_small" else 1e-4)


def assert_nearly_same_weights(ours: Path, theirs: Path, steps: int, learning_rate: float) -> None:
    """To 0.001 of the way in the root mean square, and 0.05 of a step for 999 in 1000 weights.

    Sums are rounded in another order. A few biases in IDM have gradients of 1e-9, zero but for that rounding, which
    Adam scales up to whole steps.
    """
    found = [torch.cat([value.flatten() for value in weights(folder).values()]) for folder in (ours, theirs)]
    difference = (found[0] - found[1]).abs()
    assert difference.square().mean().sqrt() < 0.001 * steps * learning_rate
    assert (difference > 0.05 * learning_rate).double().mean() < 0.001


# Python's work for a split tensor is the same however small it is: few of them.
SPLIT = (*SMALLEST["idm_small"], "--model.init_args.network.unet.layers_per_block=1")


@pytest.mark.slow
def test_split_weights(tiny_images: Path, tmp_path: Path) -> None:
    """FSDP in two processes gives the weights of one, and when resumed exactly those of FSDP uninterrupted.

    With all that touches weights: moving average, clipping, validation on two images here and one there.
    """
    fsdp = "--config", str(CONFIGS / "override/fsdp.yaml"), "--trainer.precision=32-true"
    whole = tmp_path / "whole"
    for name, processes, more in (("one", 1, []), ("whole", 2, []), ("resumed", 2, ["step=2.ckpt"])):
        out = tmp_path / name
        out.mkdir()
        words = arguments(CONFIGS / "idm_small.yaml", tiny_images, out, *SPLIT)
        words += ["--trainer.max_steps=4", "--data.batches_per_epoch=3", f"--data.batch_size={4 // processes}"]
        words += ["--model.init_args.training.ema_decay=0.9", "--trainer.gradient_clip_val=1.0"]
        words += ["--data.validation_limit=3", "--checkpoint.every_n_train_steps=2", "--checkpoint.save_top_k=-1"]
        words += [f"--ckpt_path={path}" for end in more for path in whole.glob(f"run/checkpoints/*{end}")]
        statuses, log = finish(words, out, processes, fsdp)
        assert statuses == [0] * processes, log
        assert "Warning" not in log
        assert "recommended" not in log
    assert_nearly_same_weights(tmp_path / "one", whole, 4, 1e-3)
    assert_same_weights(tmp_path / "resumed", whole)
    (whole / "run/checkpoints/last.ckpt").write_bytes(b"PK\x03\x04 torn")
    statuses, log = finish([*words[:-1], f"--ckpt_path={whole}/run/checkpoints/last.ckpt"], out, 2, fsdp)
    assert statuses == [2, 2]
    assert "last.ckpt is damaged" in log


@pytest.mark.slow
def test_split_weights_of_the_shipped_configuration(tiny_images: Path, tmp_path: Path) -> None:
    """In its precision: FSDP refuses the scaled gradients that the paper's has."""
    words = arguments(CONFIGS / "idm_small.yaml", tiny_images, tmp_path, *SPLIT)
    half, fsdp = "--trainer.precision=16-mixed", ("--config", str(CONFIGS / "override/fsdp.yaml"))
    statuses, log = finish([*words, half], tmp_path, 2, fsdp)
    assert statuses == [0, 0], log


# Resuming


@pytest.mark.slow
def test_killed_five_times_equals_uninterrupted(tiny_images: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """At four seeded moments, and once while a checkpoint is half written."""
    draw = random.Random(0)
    hooks = ["on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end"]
    kills = [(draw.choice(hooks), step) for step in (1, 3, 5, 7)]
    kills.insert(draw.randrange(1, 4), ("writing", 1))
    resumes = []
    for hook, step in kills:
        last = tmp_path / "run/checkpoints/last.ckpt"
        going_on = ["--ckpt_path=last"] if last.exists() else []
        if not going_on:  # killed before anything was saved: the folder of the next training would be another
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        words = r_coast(tiny_images, tmp_path, *going_on, *callback(KillAt, hook=hook, step=step))
        assert finish(words, tmp_path)[0] == [-signal.SIGKILL]
        # Whatever bears the name of a checkpoint is whole.
        resumes.append(torch.load(last, weights_only=True)["global_step"] if last.exists() else 0)
    assert resumes == sorted(resumes)
    assert resumes[-1] > 2
    assert finish(r_coast(tiny_images, tmp_path, "--ckpt_path=last"), tmp_path)[0] == [0]
    assert_same_weights(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
def test_a_torn_last_checkpoint_is_passed_over(
    damage: Callable[[bytes], bytes], tiny_images: Path, tmp_path: Path, half_done: Path, uninterrupted: Path
) -> None:  # fmt: skip
    shutil.copytree(half_done / "run", tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    statuses, log = finish(r_coast(tiny_images, tmp_path, "--ckpt_path=last"), tmp_path)
    assert statuses == [0]
    assert "last.ckpt is damaged" in log
    assert "going on from" in log
    assert "dataloader is not resumable" not in log, "Lightning's guess, which is wrong here"
    assert "args parameter" not in log
    assert "is not empty" not in log
    assert "step=6.ckpt, step 6" in log
    assert_same_weights(tmp_path, uninterrupted)


def test_a_damaged_checkpoint_that_was_named_is_an_error(tmp_path: Path) -> None:
    for name in ("epoch=0-step=2.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 torn")
        with pytest.raises(UserError, match="damaged"):
            DurableCheckpointIO().load_checkpoint(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "rank"), [(1, 0), (2, 1)])
def test_sigterm_saves_and_exits(
    devices: int, rank: int, tiny_images: Path, tmp_path: Path, uninterrupted: Path
) -> None:  # fmt: skip
    """In the middle of a step; in one of two processes; with data workers, which a job's signal reaches too."""
    group = devices == 1
    more = [f"--data.batch_size={2 // devices}", f"--data.num_workers={int(group)}"]
    words = r_coast(tiny_images, tmp_path, *more, *callback(SignalAt, step=4, rank=rank, group=group))
    statuses, log = finish(words, tmp_path, devices)
    assert statuses == [128 + signal.SIGTERM] * devices
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert "Traceback" not in log
    assert log.count("ended by SIGTERM; the same command with --ckpt_path last goes on") == 1
    assert "SIGTERMException" not in log
    if devices == 1:
        assert finish(r_coast(tiny_images, tmp_path, "--ckpt_path=last"), tmp_path)[0] == [0]
        assert_same_weights(tmp_path, uninterrupted)


# Guard rails


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_loss_that_is_not_finite_stops_all_processes(devices: int, tiny_images: Path, tmp_path: Path) -> None:
    words = r_coast(tiny_images, tmp_path, *callback(SpoilLoss, batches="[4]", rank=devices - 1))
    statuses, log = finish(words, tmp_path, devices)
    assert statuses == [2] * devices
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(errors) == devices
    assert "the loss is not finite at step 4: nan" in errors[-1]
    assert "batch 4 comes from" in log
    assert any(str(tiny_images / f"{number}.png") in log for number in range(3))
    folder = tmp_path / "run/checkpoints"
    state = torch.load(folder / "non_finite_4.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    for rank in range(devices):
        assert np.load(folder / f"non_finite_4_rank{rank}.npy").shape == (2, 1, 33, 33)
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_batches_without_a_finite_loss_can_be_skipped(devices: int, tiny_images: Path, tmp_path: Path) -> None:
    skip = "--model.init_args.training.non_finite=skip"
    words = r_coast(
        tiny_images, tmp_path, skip, "--trainer.log_every_n_steps=1",
        *callback(SpoilLoss, batches="[2,4]", rank=devices - 1),
    )  # fmt: skip
    assert finish(words, tmp_path, devices)[0] == [0] * devices
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["skipped_steps"] == 2
    with open(tmp_path / "run/metrics.csv") as file:
        assert {row["train/skipped_steps"] for row in csv.DictReader(file)} == {"", "1.0", "2.0"}


@pytest.mark.slow
def test_a_dead_data_worker_names_the_images(tiny_images: Path, tmp_path: Path) -> None:
    words = r_coast(tiny_images, tmp_path, "--data.num_workers=1", *callback(KillWorker))
    statuses, log = finish(words, tmp_path)
    assert statuses == [2]
    (error,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "batches died" in error
    assert str(tiny_images) in error


def test_checkpoints_of_a_gpu_are_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    state = {"weight": torch.ones(2)}
    torch.save({"cs_models": {}, "global_step": 1, "state_dict": state}, tmp_path / "last.ckpt")
    checkpoint = DurableCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["state_dict"]["weight"].device.type == "cpu"


def test_a_full_disk_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = DurableCheckpointIO()
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    content = {"cs_models": {}, "state_dict": {}}
    checkpoints.save_checkpoint(content | {"global_step": 1}, first)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for path in (second, first):
            with pytest.warns(UserWarning, match="No space left on device"):
                checkpoints.save_checkpoint(content | {"global_step": 2}, path)
        # What Lightning does once the new one is written.
        checkpoints.remove_checkpoint(first)
    assert checkpoints.load_checkpoint(first) == content | {"global_step": 1}
    assert list(tmp_path.iterdir()) == [first]
    checkpoints.save_checkpoint(content | {"global_step": 3}, second)
    checkpoints.remove_checkpoint(first)
    assert list(tmp_path.iterdir()) == [second]


@pytest.mark.slow
def test_training_goes_on_without_the_network(tiny_images: Path, tmp_path: Path) -> None:
    """W&B's server vanishes: all steps are trained and lie on disk, and the process ends."""
    server = WandbServer()
    words = wandb_arguments(tiny_images, tmp_path, "--trainer.max_steps=5", "--trainer.log_every_n_steps=1")
    environment = os.environ | server.environment | {"WANDB_FINISH_TIMEOUT": "2", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "anonymous setting" not in ended.stderr
    assert server.vanished.is_set()
    (weights,) = tmp_path.glob("cs-models/*/model.safetensors")
    load_checkpoint(weights)
    (run,) = tmp_path.glob("wandb/run-*/run-*.wandb")
    history = [record.history for record in complete_records(run) if record.HasField("history")]
    logged = [{item.key or item.nested_key[0]: item.value_json for item in entry.item} for entry in history]
    assert [entry["trainer/global_step"] for entry in logged if "train/loss" in entry] == ["0", "1", "2", "3", "4"]
