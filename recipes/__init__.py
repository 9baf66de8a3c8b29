"""Recipes: how the models that this project ships were made, from public data to weights."""
