"""Commands of the project in processes of their own, forked from one that has imported what they need.

To start Python and import torch and Lightning takes longer than most of what is tested in such a process. What forked
them runs nothing itself: no threads, no state, no accelerator. POSIX alone can do it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from tests.conftest import REPOSITORY

MAINS = {"eval.py": "cs_models.cli.evaluate", "train.py": "cs_models.cli.train"}

METHOD: Literal["spawn", "forkserver"] = "spawn" if sys.platform == "win32" else "forkserver"
"""How `multiprocessing`, torch and Lightning start functions from the same server, where there is one."""

if sys.platform != "win32":
    SERVER = multiprocessing.get_context("forkserver")
    SERVER.set_forkserver_preload(
        [
            "tests.test_long_runs",
            "cs_models.evaluation.loop",
            "cs_models.evaluation.report.tables",
            "cs_models.networks.unfolding.coast",
            "cs_models.networks.diffusion.idm",
            "lightning_fabric.strategies",
            "matplotlib.figure",
            "pytorch_lightning.cli",
            "skimage.metrics",
            "timm.utils",
        ]
    )


def start(program: str, words: Sequence[str], out: Path, errors: Path | None = None, **environment: str) -> BaseProcess:
    """Begin ``python PROGRAM WORDS`` in the repository's folder.

    Args:
        program: a script of `MAINS`.
        words: its arguments.
        out: a file for what it prints, or a named pipe.
        errors: the same for its error stream; `out` where it is not given.
        environment: variables beside those of this process.
    """
    variables = {**os.environ, **environment}
    process = SERVER.Process(target=_run, args=(program, words, out, errors or out, variables))
    process.start()
    return process


def run(program: str, words: Sequence[str], out: Path, **environment: str) -> tuple[int, str]:
    """Exit status of ``python PROGRAM WORDS``, and all that it and what it started printed."""
    if sys.platform == "win32":
        command = [sys.executable, program, *words]
        with out.open("w") as file:
            done = subprocess.run(
                command, cwd=REPOSITORY, env={**os.environ, **environment}, stdout=file, stderr=file, timeout=300
            )
        return done.returncode, out.read_text()
    process = start(program, words, out, **environment)
    return finished(process, 300), out.read_text()


def finished(process: BaseProcess, seconds: float) -> int:
    """Exit status of a process, which is killed if it takes longer than so many seconds."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(program: str, words: list[str], out: Path, errors: Path, variables: Mapping[str, str]) -> None:
    os.setsid()
    os.chdir(REPOSITORY)
    os.environ.clear()
    os.environ.update(variables)
    for path, stream in ((out, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream)
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as in any other process
    import torch
    from lightning_fabric.utilities import rank_zero

    torch.set_num_threads(1)
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # Lightning looks once, when it is imported
    sys.argv = [program, *words]
    sys.exit(importlib.import_module(MAINS[program]).main(words))
