"""Audio files and samples: checks, reading, writing, sample rates, spectrograms."""
