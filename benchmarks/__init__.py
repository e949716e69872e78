"""Measurements, each run by `python -m benchmarks.NAME`. Nothing here is a test."""
