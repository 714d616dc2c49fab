"""Every network of the model table, small, with each choice that its configuration offers; new entries need no edit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.operators import Sampling
from cs_models.training.module import ReconstructionModule
from cs_models.zoo.checkpoints import MODELS, model_class

SIZE = 16, 12
KINDS: tuple[Literal["block", "structured", "fourier"], ...] = ("block", "structured", "fourier")
# Networks are built with fewer and smaller parts where they have these; another network runs as large as it is.
SMALL: dict[str, Any] = {
    "layers": 2, "features": 4, "blocks": 2, "steps": 2,
    "unet": {"block_out_channels": (16, 16, 64, 256), "norm_num_groups": 4, "attention_head_dim": 4,
             "cross_attention_dim": 8, "layers_per_block": 1},
}  # fmt: skip


def networks() -> Iterator[str]:
    """Every network of the table, and again with each choice that its configuration offers, and with rows it learns."""
    for name in MODELS:
        yield name
        if model_class(name).learns_rows:
            yield f"{name} matrices=learned"
        config = model_class(name).config_class
        hints, defaults = get_type_hints(config), config()
        for field in fields(config):
            default = getattr(defaults, field.name)
            yield from (f"{name} {field.name}={value}" for value in _choices(hints[field.name]) if value != default)


def _choices(kind: Any) -> tuple[Any, ...]:
    if kind is bool:
        return False, True
    if get_origin(kind) is Literal:
        return get_args(kind)
    values = [value for part in get_args(kind) if get_origin(part) is Literal for value in get_args(part)]
    return (*values, None) if values else ()


def make_network(name: str) -> ReconstructionModule:
    """The network of a name of `networks`, with the first kind of sampling that it accepts."""
    model, _, choice = name.partition(" ")
    cls = model_class(model)
    known = {field.name for field in fields(cls.config_class)}
    settings = {key: value for key, value in SMALL.items() if key in known}
    learned = choice == "matrices=learned"
    if choice and not learned:
        settings |= {"steps": 1} if "steps" in known else {}
        field, _, text = choice.partition("=")
        values = _choices(get_type_hints(cls.config_class)[field])
        settings[field] = next(value for value in values if str(value) == text)
    for kind in KINDS:
        # Rows that are learned start from principal components, of which the package has some of this size.
        size, matrices = (32, "learned") if learned else (8, "gaussian")
        sampling = Sampling(ratios=(0.25,), kind=kind, block_size=size, matrices=matrices, seed=1)
        try:
            module = cls(cls.config_class(**settings), cls.training_class(sampling))  # type: ignore[call-arg]
            module.check_operator(module.default_operator(0.25, SIZE))
            break
        except UserError:
            if kind == KINDS[-1]:
                raise
    return module


def numbers(*shape: int) -> Tensor:
    """The same numbers in [0, 1) every time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
