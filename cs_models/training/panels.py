"""Pictures for whatever logger there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lightning_fabric.loggers import Logger
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor


def log_panel(logger: Logger, key: str, panel: Tensor, step: int) -> None:
    """Show one picture.

    W&B and TensorBoard get it as an image; beside a CSV log it is written as a PNG. Other loggers are passed over.

    Args:
        logger: Lightning's logger.
        key: name of the picture.
        panel: ``(C, H, W)`` in [0, 1].
        step: training step.
    """
    pixels = (panel.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    kind = type(logger).__name__
    if kind == "WandbLogger":
        logger.log_image(key, [pixels], step=step)  # type: ignore[attr-defined]
    elif kind == "TensorBoardLogger":
        logger.experiment.add_image(key, pixels, step, dataformats="HWC")  # type: ignore[attr-defined]
    elif isinstance(logger, CSVLogger):
        folder = Path(logger.log_dir) / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.squeeze(pixels)).save(folder / f"{Path(key).name}_{step:07d}.png")
