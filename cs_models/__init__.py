"""Compressed sensing: measurement operators, reconstruction networks, training-free solvers, one benchmark."""
