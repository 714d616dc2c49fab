"""What processes know of each other before they meet, and that all end with the first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cs_models.evaluation.processes import choose_device
from cs_models.launched import FIRST
from tests.conftest import REPOSITORY

# Starts itself once more, as Lightning does; then both work for minutes.
PROGRAM = """
import os, subprocess, sys, time
from cs_models.launched import ending_together
with ending_together():
    if "LOCAL_RANK" not in os.environ:
        subprocess.Popen([sys.executable, "-c", *sys.argv[1:] * 2], env=os.environ | {"LOCAL_RANK": "1"})
    else:
        print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell whether a parent is gone")
def test_a_process_ends_with_the_one_that_started_it() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in (FIRST, "LOCAL_RANK", "RANK")}
    first = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, PROGRAM], cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    first.kill()
    printed, errors = first.communicate(timeout=60)  # ends when no process has the streams any more
    assert printed == ""
    assert errors.count("\n") == 1
    assert errors.startswith("error: the first process of this run ended")


@pytest.mark.parametrize(
    ("environment", "devices", "expected"),
    [({}, 1, 0), ({}, 2, 0), ({"LOCAL_RANK": "1"}, 2, 1), ({"SLURM_LOCALID": "3"}, 4, 3), ({"LOCAL_RANK": "1"}, 1, 0)],
)
def test_each_process_tries_methods_on_its_own_gpu(
    environment: dict[str, str], devices: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert choose_device(None, devices).index == expected
