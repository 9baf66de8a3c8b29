"""Measurements: benchmarks are run by hand, and no test asserts a time."""
