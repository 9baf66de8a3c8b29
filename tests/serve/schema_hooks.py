"""Uploads for `test_schema.py`: a program of its own runs there, and reads this file."""

from __future__ import annotations

import io

import numpy as np
import schemathesis
import soundfile
from hypothesis import strategies

wav = io.BytesIO()
soundfile.write(wav, np.random.default_rng(1).uniform(-0.4, 0.4, (800, 1)), 16000, "FLOAT", format="WAV")
schemathesis.openapi.format(
    "binary", strategies.sampled_from([wav.getvalue(), wav.getvalue()[:100], b"RIFF", b""])
)
