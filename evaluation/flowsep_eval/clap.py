"""Embeddings of recordings and sentences by a CLAP model that the user provides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flowsep_eval.mel import SAMPLE_RATE, Floats
from flowsep_runtime.audio.resampling import resampled
from flowsep_runtime.errors import OptionError, shown


class Clap:
    """A CLAP checkpoint of the transformers library.

    Args:
        folder: What `ClapModel.save_pretrained` and `ClapProcessor.save_pretrained` wrote, or a download of
            such a repository. Nothing is downloaded.

    Raises:
        OptionError: If there is none, or PyTorch and transformers are not installed.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise OptionError(f"{shown(folder)} is no CLAP checkpoint: give a folder with its config.json.")
        try:
            from transformers import ClapModel, ClapProcessor
            from transformers.utils import logging
        except ImportError as error:
            raise OptionError(
                f"--clap needs {error.name}: pip install 'flowsep-engine[eval]' transformers."
            ) from None
        # It would draw its own progress bar and report unused weights.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._model: Any = ClapModel.from_pretrained(folder, local_files_only=True)
            self._processor: Any = ClapProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise OptionError(
                f"{shown(folder)} is no CLAP checkpoint that transformers reads: {reason}"
            ) from None
        self._rate = int(self._processor.feature_extractor.sampling_rate)
        self._sentences: dict[str, Floats] = {}

    def audio(self, waveforms: list[Floats]) -> Floats:
        """Waveforms `[S]` at 16 kHz -> their embeddings, `[N, D]`. If a checkpoint chooses a random piece of
        a long recording, it is the same one at every call."""
        import torch

        length = round(len(waveforms[0]) * self._rate / SAMPLE_RATE)
        tracks = [resampled(x[:, None], SAMPLE_RATE, self._rate, length)[:, 0] for x in waveforms]
        drawn = np.random.get_state()
        np.random.seed(0)
        try:
            features = self._processor.feature_extractor(
                tracks, sampling_rate=self._rate, return_tensors="pt"
            )
        finally:
            np.random.set_state(drawn)
        with torch.inference_mode():
            return _array(self._model.get_audio_features(**features))

    def text(self, sentence: str) -> Floats:
        """A sentence -> its embedding, `[D]`."""
        if sentence not in self._sentences:
            import torch

            tokens = self._processor.tokenizer([sentence], return_tensors="pt", truncation=True)
            with torch.inference_mode():
                features = self._model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
            self._sentences[sentence] = _array(features)[0]
        return self._sentences[sentence]


def _array(features: Any) -> Floats:
    # Newer transformers wrap the embedding in an output object.
    embedding = getattr(features, "pooler_output", features)
    array: Floats = embedding.numpy().astype(np.float32)
    return array
