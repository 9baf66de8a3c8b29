"""Queries to hidden states, for all runs of a separator: tokenizer, text encoder and memory."""

from __future__ import annotations

from flowsep_runtime.arrays import Floats
from flowsep_runtime.pipeline import Pipeline
from flowsep_runtime.separation.queries import Tokenizer, Tokens
from flowsep_runtime.separation.query_cache import Embeddings


class Texts:
    """Encodes queries with a pipeline's text encoder and remembers them; serves several threads."""

    def __init__(self, pipeline: Pipeline, cache: bool) -> None:
        """
        Args:
            pipeline: What computes.
            cache: True to remember in the cache folder too.
        """
        self._pipeline = pipeline
        self._tokenizer: Tokenizer | None = None
        self._known = Embeddings(pipeline.manifest, pipeline.backend.name, pipeline.precision, on_disk=cache)
        self._encoded = 0

    def open_tokenizer(self) -> Tokenizer:
        """Load the tokenizer, the first time."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._pipeline.folder, self._pipeline.manifest)
        return self._tokenizer

    def recall(self, query: str) -> tuple[Tokens, Floats | None]:
        """Tokens of a query, and its hidden states if they are known."""
        tokens = self.open_tokenizer()(query)
        return tokens, self._known.recall(tokens)

    def encode(self, tokens: Tokens) -> Floats:
        """Hidden states [1, 50, D] of a query, computed and remembered."""
        encoded = self._pipeline.encode_text(tokens.input_ids, tokens.attention_mask)
        text = self._known.keep(tokens, encoded)
        # The text encoder is the largest graph, and most runs have one query; after a second one come more.
        self._encoded += 1
        if self._encoded == 1:
            self._pipeline.free_stage("encode_text")
        return text

    def expect_more(self) -> None:
        """Keep the text encoder loaded from now on: there will be more than one query."""
        self._encoded = max(1, self._encoded)
