"""Trained networks on the Hugging Face Hub, or in a folder that looks like a repository there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from cs_models.errors import UserError, first_line
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import load_checkpoint

if TYPE_CHECKING:
    from cs_models.training.module import ReconstructionModule

WEIGHTS = "model.safetensors"
LIBRARY = "cs-models"
LICENSE = "mit"


class SharedNetwork(ModelHubMixin, library_name=LIBRARY, license=LICENSE):
    """A network with `push_to_hub`, `save_pretrained` and `from_pretrained`; the network itself is `module`.

    A repository holds the checkpoint as ``model.safetensors``, its configuration once more as ``config.json`` and
    the card.

    Attributes:
        module: the network.
        card: what people read about it; a few words where nobody set it.
    """

    def __init__(self, module: ReconstructionModule) -> None:
        self.module = module
        data = ModelCardData(license=LICENSE, library_name=LIBRARY, tags=["compressed-sensing"])
        self.card = ModelCard(f"---\n{data.to_yaml()}\n---\n\nA compressed-sensing network, `{module.name}`.\n")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that was set."""
        return self.card

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(self.module, save_directory / WEIGHTS)
        config = {key: self.module.header()[key] for key in ("model", "network")}
        (save_directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **settings: Any,
    ) -> SharedNetwork:
        path = Path(model_id) / WEIGHTS
        if not path.parent.is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cls(load_checkpoint(path))


def is_hub_name(name: str) -> bool:
    """Whether a name has the form ``user/name`` and is no file here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def from_hub(name: str, download: bool = False) -> ReconstructionModule:
    """The network of a repository ``user/name``, in evaluation mode on the CPU.

    Args:
        name: of the repository.
        download: whether to ask the Hub for what is not in the local cache.

    Raises:
        UserError: if it is not in the cache and not to be downloaded, cannot be had, or holds none of our networks.
    """
    try:
        return SharedNetwork.from_pretrained(name, local_files_only=not download).module
    except UserError:
        raise
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        if not download:
            raise UserError(
                f"'{name}' is not in the local cache of the Hugging Face Hub; cs_models.load('{name}', download=True) "
                "fetches it"
            ) from error
        raise UserError(f"cannot fetch '{name}' from the Hugging Face Hub: {first_line(error)}") from error


def push(module: ReconstructionModule, name: str, card: ModelCard, private: bool = False) -> str:
    """Upload a network with its card to a repository ``user/name``, which is made where there is none.

    Returns:
        the address of the commit.

    Raises:
        UserError: if the Hub refuses, or cannot be reached.
    """
    shared = SharedNetwork(module)
    shared.card = card
    try:
        return str(shared.push_to_hub(name, private=private))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"cannot upload to '{name}': {first_line(error)}; log in with: hf auth login") from error
