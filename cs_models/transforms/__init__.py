"""Orthonormal transforms."""
