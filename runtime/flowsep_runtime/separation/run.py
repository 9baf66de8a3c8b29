"""One separation on its way: the object that every step from `Separator` to the backend is handed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import DeviceBackend
from flowsep_runtime.bundle.manifest import ModelEntry
from flowsep_runtime.errors import FlowSepWarning, QueryWarning
from flowsep_runtime.options import Joining, ResolvedOptions
from flowsep_runtime.pipeline import Pipeline
from flowsep_runtime.separation.queries import EncodedQuery
from flowsep_runtime.separation.texts import Texts
from flowsep_runtime.separation.windows import window_starts

LARGEST_BATCH = 4  # rows that go through the model together
#: Stages after the text's: what takes longest to load first, the others about in the order of their use.
_STAGES = ("velocity", "log_mel", "encode_mixture", "vocode", "decode_latent")

#: The share of a window that it has in common with the next one.
OVERLAPS: dict[Joining, float] = {"joint": 1 / 4, "cross-fade": 1 / 8, "none": 0}

Progress = Callable[[int, "int | None"], None]


def largest_batch(pipeline: Pipeline) -> int:
    """Mixtures that go through a graph together at most."""
    backend = pipeline.backend
    most = backend.batches.most if isinstance(backend, DeviceBackend) else LARGEST_BATCH
    return min(LARGEST_BATCH, most)


def largest_loop(pipeline: Pipeline) -> int:
    """Rows that go through the velocity network, the decoder and the vocoder together at most."""
    backend = pipeline.backend
    most = backend.loop_batches.most if isinstance(backend, DeviceBackend) else LARGEST_BATCH
    return min(LARGEST_BATCH, most)


@dataclass
class Run:
    """One separation on its way.

    Attributes:
        pipeline: What computes.
        texts: Encodes queries, for all runs of a separator.
        turn: Held while the model works; with low memory by one run at a time.
        options: What was asked for.
        queries: In words, at least one.
        progress: Called with (steps done, steps in all or None); None tells nobody.
        seconds: Time spent so far, by stage.
    """

    pipeline: Pipeline
    texts: Texts
    turn: AbstractContextManager[object]
    options: ResolvedOptions
    queries: tuple[str, ...]
    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _steps_done: int = 0
    _steps_in_all: int | None = None
    _loads_ahead: bool = False

    def __post_init__(self) -> None:
        #: The model's sizes; its clip is a window.
        self.model: ModelEntry = self.options.windowed(self.pipeline.manifest.model)
        complements = [self.model.complement_of(query) for query in self.queries] if self.masked else []
        #: The complements of all queries, if the model knows them: masks are better with them.
        self.complements = tuple(complement for complement in complements if complement is not None)
        #: The sentences that the model is given.
        self.sentences = (*self.queries, *self.complements)
        #: Samples per latent frame; latent frames of a window, and of its overlap with the next one.
        self.frame = self.model.hop_length * self.model.latent_stride
        self.window = self.model.clip_samples // self.frame
        self.overlap = int(self.window * OVERLAPS[self.options.windows])

    @property
    def guided(self) -> bool:
        """True if the answer to the negative query changes the result."""
        return self.options.guidance != 1

    @property
    def masked(self) -> bool:
        """True if the targets are the mixture through masks, so that no vocoder runs."""
        return self.options.kind == "masked"

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of every window, in the order in which they are best loaded."""
        return tuple(name for name in _STAGES if not (name == "vocode" and self.masked))

    @property
    def steps_a_window(self) -> int:
        """Steps as they are counted for a window: one for each sentence."""
        return self.options.steps * len(self.sentences)

    def heard(self, mixture: Floats) -> Floats:
        """The part of a mixture [n, C] that the model hears: [n, C] or, in mono, [n, 1]."""
        return mixture.mean(axis=1, keepdims=True) if self.options.mono else mixture

    def expect(self, samples: int, sample_rate: float) -> None:
        """Tell `progress` from now on how many steps a recording of that length takes."""
        length = max(1, round(samples * self.model.sample_rate / sample_rate))
        windows = window_starts(-(-length // self.frame), self.window, self.overlap)
        self._steps_in_all = len(windows) * self.steps_a_window

    def advance(self, steps: int) -> None:
        """Count steps that were taken."""
        self._steps_done += steps
        if self.progress is not None:
            self.progress(self._steps_done, self._steps_in_all)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of a block for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Make a stage of the pipeline ready, and count the time of its block."""
        with self.timed("load"):
            if stage == "log_mel" and not self._loads_ahead:
                # Not before: a silent recording needs no model, and the text encoder is freed by now.
                self._loads_ahead = True
                self.pipeline.load_ahead(self.stages)
            self.pipeline.load_stage(stage)
        with self.timed(stage):
            yield

    @contextmanager
    def model_in_use(self) -> Iterator[None]:
        """The model works in this block; with low memory, for one run at a time, and nothing of it stays."""
        with self.turn:
            try:
                yield
            finally:
                if self.pipeline.low_memory:
                    self.pipeline.free()

    def encode_queries(self) -> tuple[list[EncodedQuery], EncodedQuery | None]:
        """Encode the sentences and, with guidance, the negative one."""
        encoded = [self._encode(sentence) for sentence in self.sentences]
        unknown = {f'"{word}"': None for query in self.queries for word in self.model.unknown_words(query)}
        if unknown:
            plural = "s" if len(unknown) > 1 else ""
            warnings.warn(
                f"The model was not trained on the word{plural} {', '.join(unknown)}: it may not understand "
                "the query.",
                QueryWarning,
                stacklevel=4,
            )
        if any(query.truncated for query in encoded):
            warnings.warn(
                f"The query is longer than the {self.model.text_length} tokens that the model reads "
                "and is cut.",
                FlowSepWarning,
                stacklevel=4,
            )
        return encoded, self._encode(self.options.negative or "") if self.guided else None

    def _encode(self, query: str) -> EncodedQuery:
        with self.timed("load"):
            self.texts.open_tokenizer()
        with self.timed("encode_text"):
            tokens, text = self.texts.recall(query)
        if text is None:
            with self.stage("encode_text"):
                text = self.texts.encode(tokens)
        return EncodedQuery(text, tokens.attention_mask, tokens.truncated)
