"""Separation quality against its cost."""
