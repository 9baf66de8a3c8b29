"""Spectrograms in the TensorBoard log: input, target and output."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

#: Natural logarithms of mel magnitudes: the floor of the front end, and a loud band.
LOWEST, HIGHEST = -11.5, 2.0


@runtime_checkable
class Pictured(Protocol):
    """A training with pictures of its state."""

    def pictures(self, batch: Any) -> dict[str, Tensor]:
        """Images by name, `[rows, T, 64]` in log-mel, time first."""


class Pictures(Callback):
    """Adds a training's `pictures` of the running batch to the log, at intervals of batches.

    Args:
        every: batches between pictures.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen = 0

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seen = state_dict["seen"]

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.seen += 1
        number = self.seen
        if number % self.every or not trainer.is_global_zero or not isinstance(module, Pictured):
            return
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        module.eval()
        with torch.no_grad():
            images = module.pictures(batch)
        module.train()
        for name, log_mel in images.items():
            trainer.logger.experiment.add_image(name, coloured(log_mel), number, dataformats="HWC")


def coloured(log_mel: Tensor) -> NDArray[np.uint8]:
    """`[rows, T, 64]` to one picture `[rows · 65, T, 3]`, low frequencies below, time to the right."""
    values = log_mel.detach().float().cpu().numpy()
    shades = np.clip((values - LOWEST) / (HIGHEST - LOWEST), 0, 1)
    rows = [np.pad(row.T[::-1], ((0, 1), (0, 0))) for row in shades]
    colours = colormaps["magma"](np.concatenate(rows))
    return (255 * colours[..., :3]).astype(np.uint8)
