"""These tests need an onnxruntime-gpu, 256 MB: `make test-cuda` installs it and runs them."""

from __future__ import annotations

import os

SITE = "FLOWSEP_CUDA_SITE"
collect_ignore_glob = [] if SITE in os.environ else ["test_*.py"]
