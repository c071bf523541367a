"""Deformable registration by neural fields, baked into ITK displacement-field transforms."""

__version__ = "0.1.0"
