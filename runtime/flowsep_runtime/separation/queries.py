"""Conversion of a sentence to hidden states of the text encoder (docs/model.md#text-encoder)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowsep_runtime.arrays import Floats, Ints
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BundleError, QueryError, shown


@dataclass(frozen=True)
class Tokens:
    """One query as the text encoder reads it: ids and 0/1 mask, each [1, 50]; `truncated` if words were cut
    off."""

    input_ids: Ints
    attention_mask: Ints
    truncated: bool


class Tokenizer:
    """The bundle's tokenizer, padding and cutting to the model's text length; `</s>` always stays the last
    token."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Raises BundleError if the file is not a tokenizer."""
        import tokenizers

        path = folder / manifest.tokenizer.file
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise BundleError(f"{shown(path)} is not a tokenizer: export the bundle again.") from error
        self._length = manifest.model.text_length
        self._pad_id = manifest.tokenizer.pad_id
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._length)

    def __call__(self, query: str) -> Tokens:
        """Tokens of a query; the empty query is the unconditional input, whose mask is all ones.

        Raises:
            QueryError: If the text holds half a surrogate pair.
        """
        try:
            encoding = self._tokenizer.encode(query)
        except (TypeError, UnicodeEncodeError):
            raise QueryError(f"The query {query!r} is not valid Unicode text.") from None
        ids = np.full((1, self._length), self._pad_id, np.int64)
        mask = np.zeros((1, self._length), np.int64)
        ids[0, : len(encoding.ids)] = encoding.ids
        mask[0, : len(encoding.ids) if query else self._length] = 1
        return Tokens(ids, mask, bool(encoding.overflowing))


@dataclass(frozen=True)
class EncodedQuery:
    """Hidden states [1, 50, D] and mask [1, 50] of one query; read-only."""

    text: Floats
    mask: Ints
    truncated: bool
