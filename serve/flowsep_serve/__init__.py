"""Separation over HTTP: an API, and a page that uses it (docs/serving.md)."""
