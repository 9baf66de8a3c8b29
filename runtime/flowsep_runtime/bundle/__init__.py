"""The bundle on disk: its manifest, and checks of its files."""
