"""Compressed sensing: measurement operators, reconstruction networks, training-free solvers, one benchmark."""

from cs_models.zoo.methods import load

__all__ = ["load"]
