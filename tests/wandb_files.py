"""The files of offline Weights & Biases runs."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def complete_records(path: Path) -> list[Any]:
    """All records; W&B's background process writes the last ones a moment after the run has finished."""
    for _ in range(1200):
        records = list(read_records(path))
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.05)
    pytest.fail(f"{path} stays incomplete")


def read_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log, blocks of 32 KiB whose pieces have a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + 7 + length > len(content):  # it is being written
            return
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
