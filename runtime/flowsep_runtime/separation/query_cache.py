"""Hidden states of the last queries, in memory and on disk.

The text encoder is by far the largest graph of a published bundle, and a query asks for it once. A query that
was encoded before, by this process or another, is answered without loading it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.caches import cache_folder, keep_newest, read_checked, write_checked
from flowsep_runtime.separation.queries import Tokens

IN_MEMORY = 64  # queries
ON_DISK, BYTES_ON_DISK = 256, 64 << 20


class Embeddings:
    """Hidden states [1, 50, D] by tokens, in float32 and read-only. Serves several threads."""

    def __init__(self, manifest: Manifest, backend: str, precision: str, on_disk: bool = True) -> None:
        """
        Args:
            manifest: Of the bundle: other files or another tokenizer share nothing.
            backend, precision: Origin of the numbers; another backend's differ in their last bits.
            on_disk: Whether to keep them in the cache folder too.
        """
        encoder = [file.sha256 for file in manifest.graph("encode_text", backend).files]
        self._source = repr((manifest.tokenizer.sha256, encoder, backend, precision))
        self._shape = (1, manifest.model.text_length, manifest.model.text_width)
        self._on_disk = on_disk
        self._known: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, tokens: Tokens) -> Floats | None:
        """The hidden states of these tokens, None if they have to be computed."""
        key = self._key(tokens)
        with self._lock:
            text = self._known.get(key)
        if text is None and self._on_disk:
            text = self._read(key)
        if text is not None:
            self._keep_in_memory(key, text)
        return text

    def keep(self, tokens: Tokens, text: Floats) -> Floats:
        """Remembers hidden states that were computed, and gives them back, now read-only."""
        key = self._key(tokens)
        self._keep_in_memory(key, text)
        if self._on_disk:
            try:
                write_checked(_path(key), np.ascontiguousarray(text, "<f4").tobytes())
                keep_newest(_path(key).parent, ON_DISK, BYTES_ON_DISK)
            except (OSError, RuntimeError):
                pass
        return text

    def _keep_in_memory(self, key: str, text: Floats) -> None:
        text.setflags(write=False)
        with self._lock:
            self._known[key] = text
            self._known.move_to_end(key)
            while len(self._known) > IN_MEMORY:
                self._known.popitem(last=False)

    def _read(self, key: str) -> Floats | None:
        try:
            path = _path(key)
            numbers = read_checked(path)
            if numbers is None:
                return None
            os.utime(path)  # those used longest ago go first
        except (OSError, RuntimeError):
            return None
        text = np.frombuffer(numbers, "<f4").astype(np.float32)
        return text.reshape(self._shape) if text.size == np.prod(self._shape) else None

    def _key(self, tokens: Tokens) -> str:
        digest = hashlib.sha256(self._source.encode())
        digest.update(tokens.input_ids.tobytes())
        digest.update(tokens.attention_mask.tobytes())
        return digest.hexdigest()


def _path(key: str) -> Path:
    return cache_folder() / "queries" / f"{key}.cache"
