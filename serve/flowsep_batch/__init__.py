"""Separation of many files on one machine or a cluster, on Ray (docs/scaling.md)."""
