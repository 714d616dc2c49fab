"""Checks of a training's data that come before anything is read or computed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cs_models.errors import UserError
from datamodules.catalog import ImageFile

# Side of the window of the SSIM of images.
SMALLEST = 7


def most_workers() -> int:
    """How many worker processes a loader may have here; more of them only take memory from one another."""
    return max(64, 4 * (os.cpu_count() or 1))


def check_scorable(files: Sequence[ImageFile]) -> None:
    """Refuse images that are too small for a score, before a training that would fail only after its first epoch.

    Raises:
        UserError: for the first such image, and for one whose header cannot be read.
    """
    for file in files:
        height, width = file.size()
        if min(height, width) < SMALLEST:
            raise UserError(
                f"validation image '{file.path}' is {height}x{width}; SSIM needs at least {SMALLEST}x{SMALLEST} pixels"
            )
