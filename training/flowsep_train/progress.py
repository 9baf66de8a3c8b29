"""Progress of a training, its remaining time, and its end."""

from __future__ import annotations

import time
from typing import Any, TextIO

import lightning
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm


class Progress(Callback):
    """A progress bar on a terminal, a line every two minutes elsewhere; stops the training after `batches`.

    It counts for itself and keeps the count in the checkpoint: Lightning's limits count optimiser
    steps, which are two a batch for the vocoder, and its batch counter is one behind when a
    checkpoint is written.

    Args:
        title: of the training.
        batches: in all, those before a resume included.
        stream: where to.
        every: seconds between lines.
    """

    def __init__(self, title: str, batches: int, stream: TextIO, every: float = 120.0) -> None:
        self.title = title
        self.batches = batches
        self.stream = stream
        self.every = every
        self.bar: tqdm[Any] | None = None
        self.started = self.said = 0.0
        self.first = self.done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.done = state_dict["done"]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.first = self.done
        self.started = self.said = time.monotonic()
        if self.first >= self.batches:
            trainer.should_stop = True
        if trainer.is_global_zero and self.stream.isatty():
            self.bar = tqdm(
                total=self.batches, initial=self.first, desc=self.title, file=self.stream, unit="step"
            )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any
    ) -> None:
        self.done += 1
        if self.done >= self.batches:
            trainer.should_stop = True
        if not trainer.is_global_zero:
            return
        values = {key: float(value) for key, value in trainer.progress_bar_metrics.items()}
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)
            self.bar.update()
        now = time.monotonic()
        if self.bar is None and (now - self.said > self.every or self.done == self.batches):
            left = (now - self.started) / (self.done - self.first) * (self.batches - self.done) / 60
            shown = ", ".join(f"{key} {value:.3f}" for key, value in values.items())
            self.stream.write(f"{self.title}: {self.done} of {self.batches}, {left:.0f} min left, {shown}\n")
            self.stream.flush()
            self.said = now

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()
