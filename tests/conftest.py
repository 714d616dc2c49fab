"""Fixtures that every test may use."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import sys
import warnings
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cs_models.cli.allocator import keep_freed_memory

REPOSITORY = Path(__file__).resolve().parent.parent


def _share_bytecode() -> None:
    """Let this process and all that the tests start share compiled modules where Python was told to keep none.

    Containers often tell it so. Each of some fifty processes would compile torch and Lightning anew, which takes longer
    than what is tested in it.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode = False
        sys.pycache_prefix = str(REPOSITORY / ".pytest_cache/bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


_share_bytecode()
keep_freed_memory()  # as the commands do
gc.disable()  # until all is imported, as they do too


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    collected = yield
    collect_rarely()
    atexit.register(gc.unfreeze)
    _ask_the_driver()
    return collected


def collect_rarely() -> None:
    """Look for garbage again, now that all is imported."""
    gc.freeze()  # what was imported stays; to search it takes long, and in a forked process copies all of its memory
    gc.set_threshold(20_000)  # nor is there a search at every 700th object
    gc.enable()


def _ask_the_driver() -> None:
    """Let torch ask the driver whether there is a GPU, where there is none.

    Lightning has it ask NVML, which takes fifty times as long, so that a process can fork and use CUDA later.
    While torch records a graph it asks for every operation.
    """
    torch = sys.modules.get("torch")  # which the process that only distributes the tests does not import
    if torch is not None and not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Show a library's own kind of warning as a plain one.

    Otherwise the process that only distributes the tests imports the library, as large as it may be.
    """
    if warning_message.category.__module__ != "builtins":
        warning_message.message = UserWarning(str(warning_message.message))
        warning_message.category = UserWarning


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--experiments", action="store_true", help="run every target of the papers' workflow, tiny")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # First, so that one process runs them all and is alone in starting a server that forks commands.
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "forked"))
    if not config.getoption("--experiments"):
        for item in items:
            if item.get_closest_marker("experiments"):
                item.add_marker(pytest.mark.skip(reason="runs with --experiments"))


def module_of(path: Path, name: str | None = None) -> ModuleType:
    """A Python file that is no part of a package, as the module of that name; by default the file's."""
    name = name or path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    import torch  # not by the process that only distributes the tests

    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # else `torch.manual_seed` takes the stack down, for when it will be
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B writes its runs to disk, says nothing, and keeps what it would upload in the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the benchmark sets and official weights; the test is skipped where it is absent."""
    candidates = [os.environ.get("CS_DATA"), REPOSITORY / "data", REPOSITORY.parent / "shared" / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "Set11").is_dir():
            return Path(candidate)
    pytest.skip("needs real data: set CS_DATA to a folder with Set11, CBSD68, official, ...")


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three smooth images of 70x66 pixels."""
    folder = tmp_path_factory.mktemp("images")
    rows, columns = np.mgrid[:70, :66]
    for index in range(3):
        pixels = 127 + 60 * np.sin(rows / (3 + index)) + 60 * np.cos(columns / (5 + index))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unconditional diffusers pipeline for grey images with a U-Net of a few random weights."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    blocks = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    unet = UNet2DModel(
        16, 1, 1, down_block_types=blocks[0], up_block_types=blocks[1], block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, add_attention=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("ddpm")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder
