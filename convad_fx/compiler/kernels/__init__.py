"""Tensor functions that emitted code calls."""
