"""Recipes that make the bundled models, from public data to weights."""
