"""Training by Lightning on a rehearsed device, as `train.py` does it; see `tests.rehearsal`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.operators import Sampling
from cs_models.training.callbacks import StopOnSigterm, Throughput
from cs_models.training.lightning import LightningTraining
from tests.rehearsed_device import DEVICE, NAME, Rehearsal
from tests.small_networks import SIZE, numbers

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = "32-true", "bf16-mixed", "16-mixed"


class RehearsedAccelerator(pl.accelerators.CPUAccelerator):
    """What Lightning asks of an accelerator."""

    def setup_device(self, device: torch.device) -> None:
        pass


class CountSteps(pl.Callback):
    """Keeps the waits of two training steps, from the third on, that end neither the epoch nor the training."""

    def __init__(self, waits: Counter[tuple[str, str]]) -> None:
        self.waits, self.of_steps = waits, Counter(waits)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 2:
            self.waits.clear()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 4:
            self.of_steps = Counter(self.waits)


def lightning_case(precision: Precision) -> Callable[[torch.device], None]:
    """Training as `train.py` does it, with everything that happens in a step."""

    def train(device: torch.device) -> None:
        if device.type == "cpu":
            return
        mode = torch.utils._python_dispatch._get_current_dispatch_mode()
        assert isinstance(mode, Rehearsal)
        count = CountSteps(mode.waits)
        sampling = Sampling(ratios=(0.25, 0.5), block_size=8, noise_sigma=5, matrices_per_ratio=2)
        training = UnfoldingTraining(sampling, ema_decay=0.9, random_iterations=True, schedule="cosine")
        network = COASTConfig(layers=2, features=4, iterations_per_layer=(2, 2), modulation="rfmu")
        plugins = [] if precision == "32-true" else [MixedPrecision(precision, NAME)]
        trainer = pl.Trainer(
            accelerator=RehearsedAccelerator(), strategy=SingleDeviceStrategy(torch.device(DEVICE)),
            plugins=plugins, max_steps=6, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False, log_every_n_steps=50, num_sanity_val_steps=0,
            callbacks=[count, StopOnSigterm(), Throughput()],
        )  # fmt: skip
        batches = torch.randint(0, 256, (6, 2, 1, 16, 16), dtype=torch.uint8)
        images = DataLoader([(numbers(1, 1, *SIZE), [str(index)]) for index in range(2)], batch_size=None)
        trainer.fit(LightningTraining(COASTModule(network, training)), DataLoader(batches, batch_size=None), images)
        mode.waits.clear()
        mode.waits.update(count.of_steps)

    return train
