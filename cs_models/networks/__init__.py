"""Reconstruction networks."""
