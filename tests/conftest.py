"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the benchmark sets and official weights; the test is skipped where it is absent."""
    candidates = [os.environ.get("CS_DATA"), REPOSITORY / "data", REPOSITORY.parent / "shared" / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "Set11").is_dir():
            return Path(candidate)
    pytest.skip("needs real data: set CS_DATA to a folder with Set11, CBSD68, official, ...")
