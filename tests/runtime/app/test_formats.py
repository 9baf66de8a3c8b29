"""Every format that is read, into every format that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flowsep_runtime.audio.media import is_installed
from flowsep_runtime.audio.reading import Recording, read_audio
from flowsep_runtime.audio.writing import CONTAINERS
from tests.runtime.command import Run

RATE, FRAMES = 16000, 2000
#: Suffix, libsndfile's container and subtype.
READABLE = [
    *((".wav", "WAV", subtype) for subtype in ("PCM_16", "PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    *((".wav", "WAV", subtype) for subtype in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")),
    *((".flac", "FLAC", subtype) for subtype in ("PCM_S8", "PCM_16", "PCM_24")),
    *((".aiff", "AIFF", subtype) for subtype in ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "IMA_ADPCM")),
    *((".caf", "CAF", subtype) for subtype in ("PCM_24", "ALAC_16", "ALAC_20", "ALAC_24", "ALAC_32")),
    *((".au", "AU", subtype) for subtype in ("PCM_16", "ULAW", "FLOAT")),
    *((suffix, "OGG", subtype) for suffix, subtype in ((".ogg", "VORBIS"), (".opus", "OPUS"))),
    (".mp3", "MP3", "MPEG_LAYER_III"),
    *((".wav", container, "PCM_24") for container in ("WAVEX", "RF64")),
    *((".w64", "W64", "FLOAT"), (".nist", "NIST", "PCM_16"), (".voc", "VOC", "PCM_16")),
    *((".sf", "IRCAM", "FLOAT"), (".paf", "PAF", "PCM_24"), (".mat", "MAT5", "DOUBLE")),
    *((".avr", "AVR", "PCM_16"), (".iff", "SVX", "PCM_16")),
]
MONO = ("IMA_ADPCM", "GSM610", "SVX")
WAYS = [list(CONTAINERS)[first : first + 3] for first in range(0, len(CONTAINERS), 3)]
#: The container of each extension, and the sample types that a result may have.
TYPES = {
    ".flac": {"PCM_S8", "PCM_16", "PCM_24"},
    ".mp3": {"MPEG_LAYER_III"},
    ".ogg": {"VORBIS", "OPUS"},
    ".oga": {"VORBIS", "OPUS"},
    ".opus": {"OPUS"},
}
BITS = {"PCM_24": 24, "PCM_32": 24, "FLOAT": 24, "DOUBLE": 24, "ALAC_20": 24, "ALAC_24": 24, "ALAC_32": 24}


def check(path: Path, given: Recording, subtype: str) -> None:
    found = soundfile.info(path)
    assert (found.frames, found.channels) == given.samples.shape, path
    assert found.samplerate == given.sample_rate, path
    container = CONTAINERS[path.suffix]
    assert found.format == container or {found.format, container} <= {"WAV", "WAVEX", "RF64"}, path
    if container not in ("OGG", "MP3"):
        bits = {"PCM_24": 24, "PCM_32": 32, "FLOAT": 25, "DOUBLE": 53}.get(found.subtype, 16)
        assert bits >= BITS.get(subtype, 0), f"{path} lost bits: {found.subtype}"
    assert found.subtype in TYPES.get(path.suffix, {found.subtype}), path
    samples = soundfile.read(path, always_2d=True)[0]
    assert np.isfinite(samples).all()


def separate_into_all(run: Run, source: Path, bundle: Path, folder: Path, subtype: str) -> None:
    """Three formats a run: the target's, the residual's and the mixture's."""
    given = read_audio(source)
    for suffixes in WAYS:
        target, residual, mixture = (folder / f"{number}{suffix}" for number, suffix in enumerate(suffixes))
        options = ["-o", target, "--residual", residual, "--save-mixture", mixture, "--clip-mode", "rescale"]
        code, _, err = run(source, "rain", *options, "--bundle", bundle, "--steps", 1, "--backend", "cpu")
        assert code == 0, err
        for path in (target, residual, mixture):
            check(path, given, subtype)


@pytest.mark.parametrize(("suffix", "container", "subtype"), READABLE)
def test_every_readable_format_becomes_every_writable_one(
    run: Run, toy_bundle: Path, tmp_path: Path, suffix: str, container: str, subtype: str
) -> None:
    if not soundfile.check_format(container, subtype):
        pytest.skip(f"this libsndfile has no {container} of {subtype}")
    channels = 1 if subtype in MONO or container in MONO else 2
    samples: Any = np.random.default_rng(0).uniform(-0.4, 0.4, (FRAMES, channels))
    source = tmp_path / f"source{suffix}"
    soundfile.write(source, samples, RATE, subtype, format=container)
    separate_into_all(run, source, toy_bundle, tmp_path, subtype)


@pytest.mark.skipif(not is_installed(), reason="PyAV is not installed: pip install 'flowsep-engine[media]'")
def test_a_media_file_becomes_every_writable_format(run: Run, toy_bundle: Path, tmp_path: Path) -> None:
    from tests.runtime.audio.test_media import encode, tones

    source = encode(tmp_path / "source.tta", tones(FRAMES), "tta", rate=RATE, sample_format="s16")
    separate_into_all(run, source, toy_bundle, tmp_path, "TTA")
