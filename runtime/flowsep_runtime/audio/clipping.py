"""Samples beyond full scale, which an integer type cannot hold."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from typing import BinaryIO, Literal, TypeAlias

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import FlowSepWarning, OutputError

#: "clamp": samples beyond full scale are cut off there. "rescale": the whole result is made quieter, so that
#: none is. "float": the result is written in floating point, which has no full scale.
ClipMode: TypeAlias = Literal["clamp", "rescale", "float"]
CLIP_MODES: tuple[ClipMode, ...] = ("clamp", "rescale", "float")

FLOATING = ("FLOAT", "DOUBLE")  # libsndfile's types that have no full scale
LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_III")  # nor have these; whoever plays them has
BLOCK = 1 << 16  # samples that come back together


class FullScale:
    """The samples of one result on their way; a file of its own holds them while they wait for the peak."""

    def __init__(self, name: str, subtype: str, mode: ClipMode) -> None:
        """
        Args:
            name: The result in messages.
            subtype: Libsndfile's sample type.
            mode: What is to be done; "float" has been done by the choice of the subtype, where it could be.

        Raises:
            OutputError: If there is no room for the file.
        """
        self._name = name
        self._clips = subtype not in (*FLOATING, *LOSSY)
        self._beyond = 0
        self._peak = 0.0
        self._channels = 1
        self._waiting: BinaryIO | None = None
        if mode == "rescale" and subtype not in FLOATING:
            try:
                self._waiting = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
            except OSError as error:
                raise self._no_room(error) from None

    def through(self, block: Floats) -> Floats:
        """Samples [n, channels] -> those of them that can be written now."""
        self._channels = block.shape[1]
        if len(block):
            levels = np.abs(block)
            self._beyond += int(np.count_nonzero(levels > 1))
            self._peak = max(self._peak, float(levels.max()))
        if self._waiting is None:
            return block
        try:
            self._waiting.write(np.ascontiguousarray(block, np.float32).tobytes())
        except OSError as error:
            raise self._no_room(error) from None
        return block[:0]

    def rest(self) -> Iterator[Floats]:
        """The samples that waited, as loud as they may be."""
        if self._waiting is None:
            return
        gain = np.float32(1 / max(1.0, self._peak))
        try:
            self._waiting.seek(0)
            while content := self._waiting.read(4 * self._channels * BLOCK):
                yield np.frombuffer(content, np.float32).reshape(-1, self._channels) * gain
        except OSError as error:
            raise self._no_room(error) from None

    def warn(self) -> None:
        """Says what was beyond full scale, and what became of it.

        Warns:
            FlowSepWarning: If something was.
        """
        if not self._beyond or (self._waiting is None and not self._clips):
            return
        if self._waiting is None:
            sentence = (
                f"{self._name} has {self._beyond} samples beyond full scale (peak {self._peak:.2f}), which "
                "are clipped: choose the clip mode rescale or float."
            )
        else:
            sentence = (
                f"{self._name} was made {20 * math.log10(self._peak):.1f} dB quieter, so that nothing clips."
            )
        warnings.warn(sentence, FlowSepWarning, stacklevel=3)

    def close(self) -> None:
        """Lets go of the file."""
        if self._waiting is not None:
            self._waiting.close()

    def _no_room(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._name} does not fit into the temporary folder ({error.strerror}): set TMPDIR to a folder "
            "with room."
        )
