"""Files that `torch.save` wrote, of unknown origin: nothing is run, and no size or checksum is believed unchecked."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from cs_models.errors import UserError, first_line
from cs_models.host_memory import check_memory


def read_torch_file(path: str | Path, old: bool = False) -> Any:
    """The content of a file on the CPU: tensors, and plain values of Python.

    Args:
        path: the file.
        old: read what torch before 1.6 wrote as well, which has no checksums.

    Raises:
        FileNotFoundError: if it is missing.
        UserError: if the file is damaged, asks for code, or does not fit into memory.
    """
    if not old or zipfile.is_zipfile(path):
        check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of what is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reads a hostile file until something fails
        raise UserError(f"cannot read '{path}' as a checkpoint without code: {why_unreadable(error)}") from error


def check_archive(path: str | Path) -> None:
    """Compare a file of `torch.save` with the lengths and the checksums that it states.

    Raises:
        FileNotFoundError: if it is missing.
        UserError: if it is no such file, damaged, or larger than the memory.
    """
    length = os.stat(path).st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch compresses nothing, so what the entries claim to hold is what the file holds.
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if compressed or sum(entry.file_size for entry in entries) > length:
                raise UserError(f"'{path}' is damaged: it claims to hold more than its {length} bytes")
            check_memory(2 * length, f"checkpoint '{path}'")
            damaged = archive.testzip()
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UserError(f"cannot read '{path}' as a checkpoint without code: {reason}") from error
    if damaged is not None:
        raise UserError(f"'{path}' is damaged: the checksum of its part '{damaged}' is another; copy it again")


def why_unreadable(error: Exception) -> str:
    """What made `torch.load` fail, in a line, without torch's advice to load the file with whatever code is in it."""
    message = re.sub(r"\x1b\[\d+m", "", str(error))
    refused = re.search(r"Unsupported (?:global|operand|class)[^.]*?GLOBAL (\S+)|module (\S+) is blocked", message)
    if refused:
        return f"it asks for {refused[1] or refused[2]}, which is no part of weights; nothing was run"
    if "weights_only" in message or message.startswith("Weights only"):
        return "it holds something else than tensors and plain values; nothing was run"
    return first_line(error)


def check_tensor(name: str, value: Any) -> None:
    """Refuse what is no ordinary tensor with all of its values in memory.

    Raises:
        UserError: with the name and what it is instead.
    """
    if not isinstance(value, torch.Tensor):
        raise UserError(f"its entry '{str(name)[:60]}' is of type {type(value).__name__}; expected a tensor")
    plain = value.layout == torch.strided and value.device.type == "cpu" and not (value.is_quantized or value.is_nested)
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(f"its tensor '{str(name)[:60]}' has no values of its own: {value.device!s}, {value.layout}")
