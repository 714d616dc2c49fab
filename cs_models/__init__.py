"""Compressed sensing: measurement operators, reconstruction networks, training-free solvers, one benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cs_models.zoo.methods import load

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # The commands ask for parts of this package that answer before torch is imported.
    if name == "load":
        from cs_models.zoo.methods import load

        return load
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
