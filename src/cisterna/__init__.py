"""Cisterna: controlled studies of how post-training shapes biological reasoning models."""

__version__ = "0.2.0"
