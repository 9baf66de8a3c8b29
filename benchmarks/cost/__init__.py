"""Kernels, operations and bytes, counted without a GPU."""
