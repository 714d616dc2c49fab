"""Training patches: random crops of image sets, cut by one gather per batch, the same on any number of processes."""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

from cs_models.errors import UserError, nearest
from cs_models.host_memory import check_memory
from cs_models.operators import MeasurementOperator
from cs_models.settings import check_range
from datamodules.catalog import BenchmarkImages, find_images, load_set
from datamodules.checks import check_scorable, most_workers
from datamodules.crops import BATCH, STATISTICS, Augment, Crops, CropSampler
from datamodules.images import Channels
from datamodules.measurements import MeasurementBatches, MeasurementSet, read_measurements

logger = logging.getLogger(__name__)

SMALLEST_VALIDATION = 64  # pixels


class PatchBatches(Dataset[Tensor]):
    """Batches by their number since the start of training, so that they depend on nothing else.

    Every process takes its own part of a global batch of ``world_size * batch_size`` patches.
    """

    def __init__(
        self, sampler: CropSampler, batch_size: int, batches_per_epoch: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __getitem__(self, step: int) -> Tensor:
        return self.sampler.draw([BATCH, step], self.rank * self.batch_size, self.batch_size)

    def files(self, step: int) -> list[str]:
        """The files of the images in this process's part of a batch."""
        return self.sampler.files([BATCH, step], self.rank * self.batch_size, self.batch_size)


class EpochSampler(DistributedSampler[int]):
    """The numbers of the batches of a training, which count on over the epochs, so that no two are the same.

    It is a `DistributedSampler` so that Lightning leaves it alone: `PatchBatches` already shares every batch among
    the processes, and all of them go through the same numbers.

    Attributes:
        delivered: how many batches were delivered since the start of training; the number of the next one.
    """

    def __init__(self, batches_per_epoch: int) -> None:
        super().__init__(range(batches_per_epoch), num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.delivered = 0

    def set_epoch(self, epoch: int) -> None:
        """Nothing: Lightning's number may be one too high after resuming at the end of an epoch."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.delivered, self.delivered + len(self)))


class ResumableLoader(DataLoader[Tensor]):
    """A `DataLoader` over an `EpochSampler` that counts what it delivers."""

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        # A generator: workers start at the first `next`, after Lightning has restored the number.
        sampler = self.sampler
        with _same_handler(getattr(signal, "SIGCHLD", None)):
            batches = super().__iter__()
        for batch in batches:
            if isinstance(sampler, EpochSampler):  # Lightning's overfit_batches puts another in its place
                sampler.delivered += 1
            yield batch

    @property
    def delivered(self) -> int:
        """How many batches were delivered since the start of training; the number of the next one."""
        return self.sampler.delivered if isinstance(self.sampler, EpochSampler) else 0


@contextmanager
def _same_handler(number: signal.Signals | None) -> Iterator[None]:
    """Keep the handler of SIGCHLD, a signal that Windows does not have, while a loader starts its workers.

    torch would have the death of a worker raised by a signal handler: at any point, even while its other sign, a
    broken connection, is being reported. Without the handler `next` alone raises it.
    """
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(number)
    yield
    if signal.getsignal(number) != handler:
        signal.signal(number, handler or signal.SIG_DFL)


def _start_method(num_workers: int) -> str | None:
    """How workers start: by fork where that is safe, since they then share the images; None: as Python does.

    From 3.14 on, Python on Linux would start them by other means and copy the images into each.
    """
    return "fork" if num_workers and sys.platform == "linux" else None


def _ignore_stop_signals(worker: int) -> None:
    """A preempted job's signals go to all its processes; workers must live until their parent has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class ValidationImages(Dataset[tuple[Tensor, list[str]]]):
    """A benchmark set as batches of one image: float32 ``(1, C, H, W)`` in [0, 1], and its name ``["set/image"]``."""

    def __init__(self, images: BenchmarkImages, side: int | None = None) -> None:
        """
        Args:
            images: the set.
            side: the middle of larger images is taken, at most so many pixels high and wide; None for whole images.
        """
        self.images = images
        self.side = side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]]:
        name, image = self.images[index]
        if self.side is not None:
            top, left = (max(0, (length - self.side) // 2) for length in image.shape[-2:])
            image = image[:, top : top + self.side, left : left + self.side]
        return image[None], [f"{self.images.set_name}/{name}"]


class PatchDataModule(pl.LightningDataModule):
    """Random crops for training, whole images for validation.

    A training batch is a uint8 tensor ``(batch_size, C, crop_size, crop_size)``. It depends on the seed and its
    number alone: two processes with batches of 8 see what one process sees with batches of 16, any number of
    workers gives the same, and resuming from a checkpoint goes on with the next batch, in the middle of an epoch too.

    With `measurements` a training batch is float ``(batch_size, 1, ...)``, measurements of that many images of the set,
    which `operator` took; there are no images then. Its number determines it in the same way.

    A validation batch is a pair: one image, float32 ``(1, C, H, W)`` in [0, 1], and its name ``["set/image"]``. The
    images are shared among the processes without repeating any; where there are fewer images than processes, each
    process goes through all of them, so that means over processes stay right.

    Args:
        data_dir: folder of the image sets; default ``$CS_DATA``, else ``data/``.
        train_sets: names or folders whose images are cut into patches, see `datamodules.catalog`.
        crop_size: side of the patches in pixels.
        batch_size: patches in a batch of one process.
        batches_per_epoch: length of an epoch.
        augment: ``none``; ``flip_transpose``, turned upside down and transposed, each with probability 1/2
            (ISTA-Net++); ``dihedral``, the 8 flips and rotations, equally likely.
        distinct_patches: draw from a fixed pool of this many crops (for training on little data); default is every
            position of every image.
        channels: ``luminance`` (C = 1) or ``rgb`` (C = 3).
        num_workers: processes that prepare training batches. They draw nothing of their own: every random number comes
            from the batch's number.
        seed: of everything that is random here.
        validation_sets: names or folders of the images to validate on; may be empty.
        validation_limit: take the first images of each validation set, this many.
        validation_share: the largest share of a training's work that its validation may take; where whole images
            would take more, their middle is validated on, at least 64x64. `validate` takes whole images.
        measurements: folder of a set of measurements, see `datamodules.measurements`, to train on instead of the
            `train_sets`; `crop_size`, `augment` and `distinct_patches` are without effect then.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        train_sets: Sequence[str] = ("bundled-train",),
        crop_size: int = 33,
        batch_size: int = 64,
        batches_per_epoch: int = 1000,
        augment: Augment = "dihedral",
        distinct_patches: int | None = None,
        channels: Channels = "luminance",
        num_workers: int = 0,
        seed: int = 0,
        validation_sets: Sequence[str] = ("bundled",),
        validation_limit: int | None = None,
        validation_share: float = 0.1,
        measurements: str | None = None,
    ) -> None:
        super().__init__()
        check_range("crop_size", crop_size, 1)
        check_range("batch_size", batch_size, 1)
        check_range("batches_per_epoch", batches_per_epoch, 1, 2**31 - 1)
        check_range("num_workers", num_workers, 0, most_workers())
        check_range("seed", seed, 0, 2**32 - 1)
        check_range("distinct_patches", distinct_patches, 1)
        check_range("validation_limit", validation_limit, 1)
        if not 0 < validation_share <= 1:
            raise UserError(f"validation_share must lie in (0, 1], got {validation_share}")
        if channels not in get_args(Channels):
            raise UserError(f"unknown channels '{channels}'{nearest(str(channels), get_args(Channels))}")
        # The places of the pixels, and the pixels twice.
        need = batch_size * crop_size**2 * (16 + 2 * (3 if channels == "rgb" else 1))
        check_memory(need, f"a batch of batch_size {batch_size} with crop_size {crop_size}")
        if augment not in get_args(Augment):
            raise UserError(f"unknown augment '{augment}'{nearest(augment, get_args(Augment))}")
        if not train_sets:
            raise UserError("train_sets is empty; name at least one image set")
        self.data_dir = data_dir
        self.train_sets = list(train_sets)
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.augment = augment
        self.distinct_patches = distinct_patches
        self.channels = channels
        self.num_workers = num_workers
        self.seed = seed
        self.validation_sets = list(validation_sets)
        self.validation_limit = validation_limit
        self.validation_share = validation_share
        self.measurements = measurements
        self._measured: MeasurementSet | None = None
        self._crop_sampler: CropSampler | None = None
        self._validation: list[BenchmarkImages] = []
        self._numbers = EpochSampler(batches_per_epoch)

    def state_dict(self) -> dict[str, int]:
        """The number of batches that were delivered, which Lightning puts into every checkpoint."""
        return {"delivered": self._numbers.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the next batch; Lightning ignores a loader's own state at the end of an epoch."""
        self._numbers.delivered = state["delivered"]

    def setup(self, stage: str | None = None) -> None:
        """Read the training images into memory, once, and find the validation images.

        Raises:
            UserError: for an unknown set or an unreadable training image, images too small for a crop or for a score,
                and more than fits into memory.
        """
        self._validation = [
            load_set(name, self.data_dir, self.channels, self.validation_limit) for name in self.validation_sets
        ]
        for images in self._validation:
            check_scorable(images.files)
        if self.measurements is not None and self._measured is None:
            self._measured = read_measurements(self.measurements)
        if stage in ("fit", None):
            if self._measured is None:
                self._sampler()
            self._numbers = EpochSampler(self.batches_per_epoch)

    @property
    def operator(self) -> MeasurementOperator | None:
        """What took the measurements of a set; None where images are trained on."""
        return None if self._measured is None else self._measured.operator

    def _sampler(self) -> CropSampler:
        if self._crop_sampler is None:
            files = [file for name in self.train_sets for file in find_images(name, self.data_dir)]
            crops = Crops(files, self.crop_size, self.channels)
            self._crop_sampler = CropSampler(crops, self.augment, self.distinct_patches, self.seed)
        return self._crop_sampler

    def training_patches(self, count: int, seed: int = 0) -> Tensor:
        """Patches for statistics of the training data, drawn like a batch, uint8 ``(count, C, s, s)``.

        Args:
            count: how many.
            seed: other seeds give other patches; none of them changes the training batches.
        """
        return self._sampler().draw([STATISTICS, seed], 0, count)

    def train_dataloader(self) -> ResumableLoader:
        """Training batches of this process, `batches_per_epoch` in an epoch."""
        batches = self._batches(*self._place())
        return ResumableLoader(
            batches,
            batch_size=None,
            sampler=self._numbers,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            multiprocessing_context=_start_method(self.num_workers),
            pin_memory=self._pins(),
            worker_init_fn=_ignore_stop_signals,
            generator=torch.Generator(),  # so that starting an epoch takes nothing from the global random state
        )

    def _batches(self, rank: int, world_size: int) -> PatchBatches | MeasurementBatches:
        size, count = self.batch_size, self.batches_per_epoch
        if self._measured is not None:
            return MeasurementBatches(self._measured, size, count, self.seed, rank, world_size)
        return PatchBatches(self._sampler(), size, count, rank, world_size)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, list[str]]] | list[Any]:
        """Validation batches of this process; an empty list where there are no validation sets."""
        if not self._validation:
            return []
        images: ConcatDataset[tuple[Tensor, list[str]]] = ConcatDataset(
            [ValidationImages(images, self._validation_side()) for images in self._validation]
        )
        rank, world_size = self._place()
        indices = range(len(images))
        if len(images) >= world_size:
            indices = indices[rank::world_size]
        share = Subset(images, indices)
        # The sampler goes through the whole share; its class keeps Lightning from sharing once more.
        sampler: DistributedSampler[int] = DistributedSampler(share, num_replicas=1, rank=0, shuffle=False)
        return DataLoader(share, batch_size=None, sampler=sampler, pin_memory=self._pins())

    def _validation_side(self) -> int | None:
        """The side of square validation images whose work is `validation_share` of that of training between them."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return None
        options = getattr(self.trainer.lightning_module, "options", None)
        ratios = 1 if options is None else len(options.validation_ratios or options.sampling.ratios)
        batches = self.batches_per_epoch * (self.trainer.check_val_every_n_epoch or 1)
        if self.trainer.max_steps > 0:
            batches = min(batches, self.trainer.max_steps)
        # Forward and backward, a pixel of training takes three times the work of one of validation.
        pixels = self.crop_size**2 if self.operator is None else math.prod(self.operator.image_size)
        trained = 3 * batches * self.batch_size * pixels * self.trainer.world_size
        images = sum(map(len, self._validation))
        return max(SMALLEST_VALIDATION, math.isqrt(int(self.validation_share * trained / (images * ratios))))

    def _pins(self) -> bool:
        """Whether batches go to a GPU; pinning them for a training on the CPU would start CUDA for nothing."""
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"

    def _place(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
