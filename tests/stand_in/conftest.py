"""These tests need an onnxruntime-gpu, a quarter of a gigabyte: `make test-cuda` installs one and runs them."""

from __future__ import annotations

import os

SITE = "FLOWSEP_CUDA_SITE"
collect_ignore_glob = [] if SITE in os.environ else ["test_*.py"]
