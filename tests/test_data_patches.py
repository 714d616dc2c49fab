from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cs_models import host_memory
from cs_models.errors import UserError
from cs_models.training.callbacks import is_worker_death
from datamodules.catalog import find_images
from datamodules.crops import Crops
from datamodules.patches import PatchDataModule
from tests import forked


@pytest.fixture
def images(tmp_path: Path) -> list[npt.NDArray[np.uint8]]:
    """Two colour images of different sizes, in the set "mine" under tmp_path, with a value for every pixel."""
    (tmp_path / "mine").mkdir()
    pixels = np.random.RandomState(0).permutation(256)[: 8 * 7 + 12 * 10].astype(np.uint8)
    greys = [pixels[:56].reshape(8, 7), pixels[56:].reshape(10, 12)]
    colours = [np.stack([grey, 255 - grey, grey // 2], axis=2) for grey in greys]
    for name, colour in zip("ab", colours, strict=True):
        Image.fromarray(colour).save(tmp_path / "mine" / f"{name}.png")
    return colours


def make(folder: Path, **options: Any) -> PatchDataModule:
    settings: dict[str, Any] = {"train_sets": ["mine"], "crop_size": 5, "batch_size": 4, "batches_per_epoch": 6}
    module = PatchDataModule(str(folder), validation_sets=["mine"], channels="rgb", **settings | options)
    module.setup("fit")
    return module


def epoch(module: PatchDataModule, number: int = 0) -> Tensor:
    module.load_state_dict({"delivered": number * module.batches_per_epoch})
    return torch.stack(list(module.train_dataloader()))


def test_a_dead_worker_is_reported_by_the_next_batch_alone(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    """torch's handler of SIGCHLD would raise here and now, as a second error where a first one is being handled."""
    batches = iter(make(tmp_path, num_workers=1).train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    multiprocessing.connection.wait([worker.sentinel])
    with pytest.raises((RuntimeError, ConnectionError, EOFError)) as caught:
        list(batches)
    assert is_worker_death(caught.value)


def test_every_crop_equals_its_slice(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    crops = Crops(find_images("mine", tmp_path), 5, "rgb")
    expected = [
        image[row : row + 5, column : column + 5]
        for image in images
        for row in range(image.shape[0] - 4)
        for column in range(image.shape[1] - 4)
    ]
    assert crops.count == len(expected) == 4 * 3 + 6 * 8
    assert np.array_equal(crops.cut(np.arange(crops.count)).transpose(0, 2, 3, 1), expected)


def test_flips_are_applied_in_their_order(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    crops = Crops(find_images("mine", tmp_path), 5, "rgb")
    flips = np.array([[bool(index & bit) for bit in (1, 2, 4)] for index in range(8)])
    cut = crops.cut(np.full(8, 20), flips)
    plain = crops.cut(np.array([20]))[0]
    for (upside_down, mirrored, transposed), crop in zip(flips, cut, strict=True):
        expected = plain[:, ::-1] if upside_down else plain
        expected = expected[:, :, ::-1] if mirrored else expected
        assert np.array_equal(crop, expected.transpose(0, 2, 1) if transposed else expected)


def test_batch_is_uint8_in_channels_first(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    batch = next(iter(make(tmp_path).train_dataloader()))
    assert batch.dtype == torch.uint8
    assert batch.shape == (4, 3, 5, 5)
    assert batch.is_contiguous()
    grey = PatchDataModule(str(tmp_path), ["mine"], crop_size=5, batch_size=4)
    assert next(iter(grey.train_dataloader())).shape == (4, 1, 5, 5)


def test_positions_are_uniform_over_all_images(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    module = make(tmp_path, augment="none", batch_size=1000, batches_per_epoch=10)
    corners = epoch(module)[:, :, 0, 0, 0].flatten().bincount(minlength=256)
    expected = 10_000 / 60  # every first pixel is another
    assert (corners > 0).sum() == 60
    chi_squared = ((corners[corners > 0] - expected) ** 2 / expected).sum()
    assert chi_squared < 100  # 59 degrees of freedom: 99.93 % of the draws


@pytest.mark.parametrize(("augment", "kinds"), [("none", 1), ("flip_transpose", 4), ("dihedral", 8)])
def test_augmentation_draws_its_kinds_equally(
    tmp_path: Path, images: list[npt.NDArray[np.uint8]], augment: str, kinds: int
) -> None:
    module = make(tmp_path, augment=augment, batch_size=4000, batches_per_epoch=1, distinct_patches=1)
    _, counts = torch.unique(epoch(module)[0], dim=0, return_counts=True)
    assert len(counts) == kinds
    assert counts.min() > 0.8 * 4000 / kinds


def test_flip_transpose_never_mirrors_left_to_right_alone(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    plain = epoch(make(tmp_path, augment="none", distinct_patches=1))[0, 0]
    drawn = epoch(make(tmp_path, augment="flip_transpose", distinct_patches=1, batch_size=200))[0]
    assert (drawn == plain.flip(1)).all(dim=(1, 2, 3)).any()
    assert not (drawn == plain.flip(2)).all(dim=(1, 2, 3)).any()


def test_distinct_patches_is_a_fixed_pool(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    module = make(tmp_path, augment="none", distinct_patches=7, batch_size=50)
    first, second = (torch.unique(epoch(module, number).flatten(0, 1), dim=0) for number in (0, 1))
    assert len(first) == 7
    assert torch.equal(first, second)
    with pytest.raises(UserError, match=r"distinct_patches must lie in 1\.\.60"):
        make(tmp_path, distinct_patches=61)


def test_batches_follow_seed_epoch_and_number(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    whole = torch.cat([epoch(make(tmp_path), number) for number in (0, 1)])
    assert torch.equal(whole, torch.cat([epoch(make(tmp_path), number) for number in (0, 1)]))
    assert len(torch.unique(whole.flatten(1), dim=0)) == 12  # no two batches of two epochs are the same
    assert not torch.equal(whole[:6], epoch(make(tmp_path, seed=1)))


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_nothing(tmp_path: Path, images: list[npt.NDArray[np.uint8]], workers: int) -> None:
    module = make(tmp_path, num_workers=workers)
    loader = module.train_dataloader()
    for number in (0, 1):  # the workers live on
        assert torch.equal(torch.stack(list(loader)), epoch(make(tmp_path), number))


class Place:
    """As much of a Trainer as says which process this is, and on what."""

    def __init__(self, global_rank: int, world_size: int, device: str = "cpu") -> None:
        self.global_rank, self.world_size = global_rank, world_size
        self.state = SimpleNamespace(fn="validate")
        self.strategy = SimpleNamespace(root_device=torch.device(device))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_pinned_for_a_gpu_alone(
    tmp_path: Path, images: list[npt.NDArray[np.uint8]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training on the CPU of a machine with a GPU leaves CUDA alone: a forked process could not begin it anew."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    module = make(tmp_path)
    module.trainer = Place(0, 1, device)  # type: ignore[assignment]
    loaders = module.train_dataloader(), module.val_dataloader()
    assert [loader.pin_memory for loader in loaders] == [device == "cuda"] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(tmp_path: Path, images: list[npt.NDArray[np.uint8]], processes: int) -> None:
    parts = []
    for rank in range(processes):
        module = make(tmp_path, batch_size=8 // processes)
        module.trainer = Place(rank, processes)  # type: ignore[assignment]
        parts.append(epoch(module, 3))
    assert torch.equal(torch.cat(parts, dim=1), epoch(make(tmp_path, batch_size=8), 3))


def test_loading_takes_nothing_from_the_global_random_state(
    tmp_path: Path, images: list[npt.NDArray[np.uint8]]
) -> None:
    before = torch.get_rng_state()
    epoch(make(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_patches(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    module = PatchDataModule(str(tmp_path), ["mine"], crop_size=5, channels="rgb")
    patches = module.training_patches(30)
    assert patches.shape == (30, 3, 5, 5)
    assert patches.dtype == torch.uint8
    assert torch.equal(module.training_patches(10), patches[:10])
    assert not torch.equal(module.training_patches(30, seed=1), patches)


def test_small_images_are_passed_over_and_counted(
    tmp_path: Path, images: list[npt.NDArray[np.uint8]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        module = make(tmp_path, crop_size=8)
    assert "1 of 2 training images" in caplog.text
    assert epoch(module).shape == (6, 4, 3, 8, 8)
    with pytest.raises(UserError, match=r"no training image holds a 11x11 crop; '.*a\.png' is 8x7"):
        make(tmp_path, crop_size=11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "crop_size must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batches_per_epoch": 0}, "batches_per_epoch must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"augment": "dihedrl"}, "did you mean 'dihedral'"),
        ({"train_sets": []}, "train_sets is empty"),
        ({"train_sets": ["Min"]}, "did you mean 'mine'"),
        ({"validation_limit": 0}, "limit must be"),
        ({"validation_share": 0.0}, "validation_share must lie in"),
        ({"validation_share": 1.5}, "validation_share must lie in"),
        ({"validation_limit": -3}, "validation_limit must be at least 1"),
        ({"distinct_patches": 0}, "distinct_patches must be at least 1"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
        ({"seed": 10**30}, "seed must be at most"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"num_workers": 100_000}, "num_workers must be at most"),
        ({"batches_per_epoch": 10**20}, "batches_per_epoch must be at most"),
        ({"crop_size": 10**9}, "batch_size 4 with crop_size 1000000000 needs over a million GB of memory"),
        ({"batch_size": 10**12}, "batch_size 1000000000000 with crop_size 5 needs"),
        ({"crop_size": 10**200}, "needs over a million GB of memory"),
        ({"crop_size": 40_000}, r"crop_size 40000 needs about 131\.1 GB of memory; there is about 50\.0 GB"),
    ],
)
def test_wrong_settings_are_one_line(
    tmp_path: Path,
    images: list[npt.NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(host_memory, "memory_available", lambda: 50 * 2**30)
    with pytest.raises(UserError, match=message):
        make(tmp_path, **options)


def test_settings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"seed": 2**32},
        {"crop_size": 10**7},
        {"validation_limit": 0},
        {"distinct_patches": -1},
    ]
    settings.append({"channels": "rbg"})
    for options in settings:
        with pytest.raises(UserError):
            PatchDataModule(str(tmp_path / "nowhere"), ["mine"], **options)


@pytest.mark.parametrize("stage", ["fit", "validate", None])
@pytest.mark.parametrize(("height", "width"), [(6, 50), (50, 6), (1, 1)])
def test_a_validation_image_too_small_for_a_score_is_refused_at_setup(
    tmp_path: Path, images: list[npt.NDArray[np.uint8]], stage: str | None, height: int, width: int
) -> None:
    (tmp_path / "small").mkdir()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(tmp_path / "small/x.png")
    module = PatchDataModule(str(tmp_path), ["mine"], crop_size=5, validation_sets=["mine", "small"])
    with pytest.raises(UserError, match=rf"x\.png' is {height}x{width}; SSIM needs at least 7x7"):
        module.setup(stage)
    PatchDataModule(str(tmp_path), ["small"], crop_size=1, validation_sets=["mine"]).setup(stage)  # good for training


def test_a_damaged_validation_image_is_refused_at_setup(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    (tmp_path / "mine/c.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(UserError, match=r"c\.png.*PNG, JPEG"):
        PatchDataModule(str(tmp_path), ["bundled-train"], validation_sets=["mine"]).setup("validate")


def test_a_training_set_larger_than_the_memory_is_refused(
    tmp_path: Path, images: list[npt.NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr("datamodules.crops.check_memory", lambda need, what: asked.append((need, what)))
    make(tmp_path)
    assert asked[-1] == (2 * 3 * (8 * 7 + 10 * 12), "the training set of 2 images")


def test_validation_gives_each_image_with_its_name(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    items = list(make(tmp_path).val_dataloader())
    assert [name for _, [name] in items] == ["mine/a", "mine/b"]
    for (image, _), expected in zip(items, images, strict=True):
        assert image.dtype == torch.float32
        assert np.array_equal(image.numpy()[0], expected.transpose(2, 0, 1) / np.float32(255))
    assert [name for _, [name] in make(tmp_path, validation_limit=1).val_dataloader()] == ["mine/a"]


@pytest.mark.parametrize(("processes", "repeats"), [(1, 1), (2, 1), (3, 3)])
def test_validation_images_are_shared_evenly(
    tmp_path: Path, images: list[npt.NDArray[np.uint8]], processes: int, repeats: int
) -> None:
    names = []
    for rank in range(processes):
        module = make(tmp_path)
        module.trainer = Place(rank, processes)  # type: ignore[assignment]
        names += [name for _, [name] in module.val_dataloader()]
    assert sorted(names) == sorted(["mine/a", "mine/b"] * repeats)


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({}, 64),  # never less
        ({"batches_per_epoch": 1000}, 132),  # sqrt(0.1 * 3 * 1000 * 4 * 22^2 / (11 images * 3 ratios))
        ({"batches_per_epoch": 1000, "validation_share": 0.4}, 265),
        ({"batches_per_epoch": 10**6}, 300),  # the whole image
    ],
)
def test_validation_takes_a_share_of_the_work_at_most(tmp_path: Path, options: dict[str, Any], side: int) -> None:
    (tmp_path / "large").mkdir()
    for number in range(11):
        Image.new("L", (300, 300)).save(tmp_path / f"large/{number}.png")
    sampling = SimpleNamespace(validation_ratios=None, sampling=SimpleNamespace(ratios=(0.1, 0.2, 0.3)))
    settings = {"batch_size": 4, "batches_per_epoch": 1} | options
    module = PatchDataModule(str(tmp_path), ["large"], crop_size=22, validation_sets=["large"], **settings)
    module.setup("fit")
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), lightning_module=SimpleNamespace(options=sampling), max_steps=-1,
        check_val_every_n_epoch=1, world_size=1, global_rank=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    module.trainer = trainer  # type: ignore[assignment]
    image, _ = next(iter(module.val_dataloader()))
    assert image.shape == (1, 1, side, side)
    trainer.state.fn = "validate"
    image, _ = next(iter(module.val_dataloader()))
    assert image.shape == (1, 1, 300, 300)


def test_no_validation_sets_means_no_validation(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    module = PatchDataModule(str(tmp_path), ["mine"], crop_size=5, validation_sets=[])
    module.setup("fit")
    assert module.val_dataloader() == []


class Recorder(pl.LightningModule):
    """Does nothing but remember what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("constant", torch.ones(1))  # data-parallel training broadcasts buffers
        self.batches: list[tuple[int, Tensor]] = []
        self.names: list[str] = []
        # Not the mean of `log(..., sync_dist=True)`: Lightning 2.6 rounds the mean number of images of a process.
        self.mean = MeanMetric()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.batches.append((index, batch.clone()))
        return self.weight * batch.float().mean()

    def validation_step(self, batch: tuple[Tensor, list[str]], index: int) -> None:
        image, names = batch
        self.names += names
        self.mean.update(image.mean())
        self.log("mean", self.mean, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def train(module: PatchDataModule, folder: Path, ckpt_path: Path | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    callbacks = options.pop("callbacks", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            callbacks=callbacks,
            enable_checkpointing=callbacks is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            **{"max_epochs": 3, "devices": 1} | options,
        )
        trainer.fit(recorder, module, ckpt_path=ckpt_path, weights_only=True)
    return recorder


def assert_same_batches(left: list[tuple[int, Tensor]], right: list[tuple[int, Tensor]]) -> None:
    assert [index for index, _ in left] == [index for index, _ in right]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(left, right, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("checkpoint", "validation"),
    [
        ({"every_n_train_steps": 1}, {}),
        ({"every_n_train_steps": 1}, {"val_check_interval": 2}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
        ({"every_n_epochs": 1}, {"val_check_interval": 2}),
    ],
    ids=["every step", "every step, validation between", "after epochs", "after validations"],
)
def test_resuming_goes_on_with_the_next_batch(
    tmp_path: Path,
    images: list[npt.NDArray[np.uint8]],
    workers: int,
    checkpoint: dict[str, Any],
    validation: dict[str, Any],
) -> None:
    options = {"num_workers": workers, "batches_per_epoch": 4}
    saving = ModelCheckpoint(tmp_path / "ckpt", filename="{step}", save_top_k=-1, **checkpoint)
    whole = train(make(tmp_path, **options), tmp_path, callbacks=[saving], **validation).batches
    assert len(whole) == 12
    saved = sorted((tmp_path / "ckpt").glob("*.ckpt"))
    assert len(saved) >= 3
    # With workers, which are slow to start, one checkpoint in the middle of the second epoch or at its end.
    for path in saved if workers == 0 else saved[len(saved) // 2 : len(saved) // 2 + 1]:
        step = int(path.stem.removeprefix("step="))
        resumed = train(make(tmp_path, **options), tmp_path, ckpt_path=path, **validation).batches
        assert_same_batches(resumed, whole[step:])


def test_overfitting_repeats_the_first_batches(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    batches = train(make(tmp_path), tmp_path, overfit_batches=2).batches
    assert_same_batches(batches, batches[:2] * 3)
    assert torch.equal(batches[0][1], epoch(make(tmp_path))[0])


class Saver(pl.Callback):
    """Writes what each process was given to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Recorder)
        batches = torch.stack([batch for _, batch in pl_module.batches])
        mean = trainer.callback_metrics["mean"]
        torch.save((batches, pl_module.names, mean), self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_real_processes_see_what_one_sees(tmp_path: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    (tmp_path / "third").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "third" / "c.png")
    sets = ["mine", "third"]  # three images on two processes
    settings: dict[str, Any] = {"train_sets": ["mine"], "crop_size": 5, "channels": "rgb", "validation_sets": sets}
    for devices, strategy in ((2, DDPStrategy(start_method=forked.METHOD)), (1, "auto")):
        (tmp_path / str(devices)).mkdir()
        module = PatchDataModule(str(tmp_path), batch_size=4 // devices, batches_per_epoch=3, **settings)
        saver = Saver(tmp_path / str(devices))
        train(module, tmp_path, callbacks=[saver], devices=devices, strategy=strategy, max_epochs=2)
    first, second = (torch.load(tmp_path / f"2/rank{rank}.pt") for rank in (0, 1))
    alone = torch.load(tmp_path / "1/rank0.pt")
    assert torch.equal(torch.cat([first[0], second[0]], dim=1), alone[0])
    assert sorted(first[1] + second[1]) == sorted(alone[1])
    assert first[2] == pytest.approx(alone[2].item(), abs=1e-6)
