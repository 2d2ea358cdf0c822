"""Measurements behind choices and claims; run from the repository root with ``python -m benchmarks.NAME``."""
