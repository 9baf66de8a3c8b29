"""Recordings of any length through the pipeline: windows, noise, levels, masks, queries."""
