"""Trained weights that a training left with Weights & Biases, as ``wandb:ENTITY/PROJECT/NAME:TAG``."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from cs_models.errors import UserError, first_line
from cs_models.files import is_file

WEIGHTS = "wandb:"
REFERENCE = re.compile(r"(?P<entity>[\w.-]+)/(?P<project>[\w.-]+)/(?P<name>[\w.-]+)(:(?P<tag>[\w.-]+))?")
SUFFIXES = (".safetensors", ".ckpt")


def reference_of(method: str) -> str:
    """The artifact ``ENTITY/PROJECT/NAME:TAG`` that a method names; the newest one where it names no tag.

    Raises:
        UserError: if it cannot be read.
    """
    match = REFERENCE.fullmatch(method.removeprefix(WEIGHTS))
    if match is None:
        raise UserError(
            f"cannot read '{method}'; weights at Weights & Biases are written wandb:ENTITY/PROJECT/NAME:TAG"
        )
    return f"{match['entity']}/{match['project']}/{match['name']}:{match['tag'] or 'latest'}"


@cache
def download(method: str) -> Path:
    """The checkpoint of an artifact, in the user's cache; of an artifact's files nothing else is fetched.

    Args:
        method: ``wandb:ENTITY/PROJECT/NAME:TAG``.

    Raises:
        UserError: if it cannot be read or fetched, or holds no checkpoint or several.
    """
    reference = reference_of(method)
    try:
        import wandb
    except ImportError:
        raise UserError(f"'{method}' needs the package wandb: pip install wandb") from None
    try:
        artifact = wandb.Api().artifact(reference)
        files = [name for name in artifact.manifest.entries if name.endswith(SUFFIXES)]
        if len(files) != 1:
            raise UserError(f"'{method}' holds {len(files)} checkpoints; expected one .safetensors file")
        folder = _cache() / artifact.entity / artifact.project / artifact.name.replace(":", "_")
        if not is_file(folder / files[0]):
            artifact.get_entry(files[0]).download(root=str(folder))
    except (wandb.Error, ValueError, OSError) as error:  # a login, a name or a network that is missing
        raise UserError(f"cannot fetch '{method}': {first_line(error)}") from error
    return folder / files[0]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "cs-models" / "wandb"
