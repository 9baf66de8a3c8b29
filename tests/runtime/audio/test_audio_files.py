"""Audio files block by block: what is read is what is there, and what is written is in the input's manner."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flowsep_runtime import AudioError, FlowSepWarning, OutputError
from flowsep_runtime.audio.reading import AudioReader, read_audio
from flowsep_runtime.audio.writing import AudioWriter, Encoding, encoding_for

RATE = 16000
FORMATS = {
    "a.wav": "PCM_16",
    "b.wav": "PCM_24",
    "c.wav": "FLOAT",
    "d.wav": "DOUBLE",
    "e.wav": "PCM_U8",
    "f.wav": "ULAW",
    "a.flac": "PCM_16",
    "b.flac": "PCM_24",
    "a.ogg": "VORBIS",
    "a.opus": "OPUS",
    "a.mp3": "MPEG_LAYER_III",
    "a.aiff": "PCM_24",
    "a.au": "PCM_16",
    "a.caf": "PCM_24",
    "b.caf": "ALAC_16",
    "a.w64": "FLOAT",
    "a.rf64": "PCM_24",
}
CONTAINER = {".opus": "OGG", ".rf64": "RF64"}


def noise(frames: int, channels: int = 2) -> Any:
    return np.random.default_rng(frames).uniform(-0.5, 0.5, (frames, channels)).astype(np.float32)


def put(path: Path, samples: Any, subtype: str, rate: int = RATE, **tags: str) -> Path:
    container = CONTAINER.get(path.suffix)
    with soundfile.SoundFile(str(path), "w", rate, samples.shape[1], subtype, format=container) as sound:
        for name, text in tags.items():
            setattr(sound, name, text)
        sound.write(samples)
    return path


def write_copy(source: Path, copy: Path) -> None:
    with AudioReader(source) as reader:
        encoding = encoding_for(copy, reader)
        with AudioWriter(copy, reader.sample_rate, reader.channels, encoding, reader.tags) as writer:
            for block in reader.blocks(1000):
                writer.write(block)


@pytest.mark.parametrize(("name", "subtype"), FORMATS.items())
def test_a_result_has_the_recordings_container_subtype_rate_channels_and_length(
    tmp_path: Path, name: str, subtype: str
) -> None:
    source, copy = put(tmp_path / name, noise(12345), subtype), tmp_path / f"copy.{name}"
    write_copy(source, copy)
    given, found = soundfile.info(str(source)), soundfile.info(str(copy))
    for field in ("format", "subtype", "samplerate", "channels", "frames"):
        assert getattr(found, field) == getattr(given, field)
    if subtype not in ("VORBIS", "OPUS", "MPEG_LAYER_III"):
        assert np.array_equal(soundfile.read(str(source))[0], soundfile.read(str(copy))[0])


@pytest.mark.parametrize(("name", "subtype"), FORMATS.items())
def test_blocks_together_are_the_whole(tmp_path: Path, name: str, subtype: str) -> None:
    source = put(tmp_path / name, noise(5000), subtype)
    whole, rate = soundfile.read(str(source), dtype="float32", always_2d=True)
    with AudioReader(source) as reader:
        blocks = list(reader.blocks(700))
        assert all(len(block) <= 700 for block in blocks)
        assert np.allclose(np.concatenate(blocks), whole, atol=1e-6)
        assert np.allclose(np.concatenate(list(reader.blocks())), whole, atol=1e-6)  # as often as wanted
        assert (reader.frames, reader.sample_rate, reader.channels) == (5000, rate, 2)
    assert np.allclose(read_audio(source).samples, whole, atol=1e-6)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".caf", ".rf64"])
def test_tags_survive_where_the_container_has_them(tmp_path: Path, suffix: str) -> None:
    tags = {"title": "Träume 🐶", "artist": "Nobody", "comment": "of rain"}
    subtype = {".ogg": "VORBIS", ".opus": "OPUS", ".mp3": "MPEG_LAYER_III"}.get(suffix, "PCM_16")
    source = put(tmp_path / f"a{suffix}", noise(4000), subtype, RATE, **tags)
    copy = tmp_path / f"b{suffix}"
    write_copy(source, copy)
    with soundfile.SoundFile(str(copy)) as found:
        assert {name: text for name, text in found.copy_metadata().items() if name in tags} == tags


@pytest.mark.parametrize("suffix", [".au", ".w64"])
def test_tags_are_left_out_where_the_container_has_none(tmp_path: Path, suffix: str) -> None:
    source = put(tmp_path / "a.wav", noise(100), "PCM_16", title="Rain")
    copy = tmp_path / f"b{suffix}"
    write_copy(source, copy)
    assert soundfile.info(str(copy)).frames == 100


@pytest.mark.parametrize(
    ("subtype", "output", "expected"),
    [
        ("FLOAT", "out.flac", "PCM_24"),
        ("PCM_32", "out.flac", "PCM_24"),
        ("PCM_24", "out.flac", "PCM_24"),
        ("PCM_16", "out.flac", "PCM_16"),
        ("MS_ADPCM", "out.wav", "PCM_16"),
        ("FLOAT", "out.ogg", "VORBIS"),
        ("FLOAT", "out.opus", "OPUS"),
    ],
)
def test_a_subtype_that_cannot_be_kept_becomes_the_nearest(
    tmp_path: Path, subtype: str, output: str, expected: str
) -> None:
    with AudioReader(put(tmp_path / "a.wav", noise(100), subtype)) as reader:
        assert encoding_for(tmp_path / output, reader).subtype == expected


def test_a_wav_that_would_outgrow_its_sizes_is_an_rf64(tmp_path: Path) -> None:
    with AudioReader(put(tmp_path / "a.wav", noise(100), "PCM_24")) as reader:
        assert encoding_for(tmp_path / "b.wav", reader) == Encoding("WAV", "PCM_24")
        reader.frames = 716_000_000  # 4.3 GB of stereo in 24 bits
        assert encoding_for(tmp_path / "b.wav", reader) == Encoding("RF64", "PCM_24")
        assert encoding_for(tmp_path / "b.flac", reader) == Encoding("FLAC", "PCM_24")


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_16"),
        ("b.wav", "IMA_ADPCM"),
        ("a.aiff", "PCM_24"),
        ("a.au", "PCM_16"),
        ("a.w64", "PCM_16"),
        ("a.rf64", "PCM_16"),
    ],
)
def test_a_file_that_is_cut_short_is_read_with_a_warning(tmp_path: Path, name: str, subtype: str) -> None:
    source = put(tmp_path / name, noise(50000), subtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with AudioReader(source) as reader:
            assert reader.frames >= 50000
    os.truncate(source, source.stat().st_size * 3 // 5)
    with pytest.warns(FlowSepWarning, match=rf"{name} is cut short: \d+ bytes of the sound"):
        reader = AudioReader(source)
    with reader:
        assert 0 < reader.frames < 50000
        assert sum(map(len, reader.blocks())) == reader.frames


def test_a_truncated_ogg_is_read_up_to_its_last_page(tmp_path: Path) -> None:
    """An Ogg does not say how long it is."""
    source = put(tmp_path / "a.ogg", noise(50000), "VORBIS")
    os.truncate(source, source.stat().st_size * 3 // 5)
    with AudioReader(source) as reader:
        assert 0 < reader.frames < 50000


def test_a_truncated_mp3_is_read_with_a_warning(tmp_path: Path) -> None:
    source = put(tmp_path / "a.mp3", noise(50000), "MPEG_LAYER_III")
    os.truncate(source, source.stat().st_size // 2)
    with pytest.warns(FlowSepWarning, match=r"a\.mp3 ends early: its header promises 3\.1"):
        AudioReader(source)


@pytest.mark.parametrize("damage", ["cut", "bytes"])
def test_a_damaged_flac_says_where(tmp_path: Path, damage: str) -> None:
    source = put(tmp_path / "a.flac", noise(50000), "PCM_16")
    size = source.stat().st_size
    if damage == "cut":
        os.truncate(source, size * 3 // 5)
    else:
        content = bytearray(source.read_bytes())
        content[size // 2 : size // 2 + 400] = bytes(400)
        source.write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.flac is damaged after [12]\.\d\d s"):
        AudioReader(source)


def headers() -> dict[str, bytes]:
    """Files of a thousand samples whose headers promise gigabytes, or nothing."""

    def of(container: str) -> bytearray:
        file = io.BytesIO()
        soundfile.write(file, noise(1000, 1), RATE, "PCM_16", format=container)
        return bytearray(file.getvalue())

    def changed(content: bytearray, place: int, value: bytes) -> bytes:
        content[place : place + len(value)] = value
        return bytes(content)

    found = {}
    data = of("WAV").index(b"data") + 4
    for name, size in (("4 GB", b"\xff" * 4), ("2 GB", b"\0\0\0\x80")):
        found[f"wav {name}"] = changed(of("WAV"), data, size)
    found["au 4 GB"] = changed(of("AU"), 8, b"\xff" * 4)
    aiff = of("AIFF")
    found["aiff 2 GB"] = changed(
        bytearray(changed(aiff, aiff.index(b"SSND") + 4, b"\x7f" + b"\xff" * 3)),
        aiff.index(b"COMM") + 10,
        b"\x7f" + b"\xff" * 3,
    )
    found["w64 8 EB"] = changed(of("W64"), of("W64").index(b"data", 20) + 16, b"\xff" * 7 + b"\x7f")
    found["rf64 16 EB"] = changed(
        of("RF64"), of("RF64").index(b"ds64") + 8, b"\xff" * 8 + 2 * (b"\xff" * 7 + b"\x7f")
    )
    flac = of("FLAC")
    found["flac of 2^36 samples"] = changed(flac, 21, bytes([flac[21] | 0x0F]) + b"\xff" * 4)
    flac = of("FLAC")
    found["flac of unknown length"] = changed(flac, 21, bytes([flac[21] & 0xF0]) + b"\0" * 4)
    return found


@pytest.mark.parametrize("name", headers())
def test_a_header_that_lies_about_the_length_costs_nothing(tmp_path: Path, name: str) -> None:
    source = tmp_path / "a.snd"
    source.write_bytes(headers()[name])
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FlowSepWarning)
            reader = AudioReader(source)
        samples = np.concatenate(list(reader.blocks()))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert np.abs(samples - noise(1000, 1)).max() < 1e-4


def test_nan_is_found_before_anything_else_happens_and_its_place_is_named(tmp_path: Path) -> None:
    samples = noise(RATE, 1)
    samples[8000] = np.nan
    with pytest.raises(AudioError, match=r"a\.wav: .*NaN or infinite samples, the first at 0\.500 s"):
        AudioReader(put(tmp_path / "a.wav", samples, "FLOAT"))


def test_a_rate_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"a\.wav: The sample rate is 50 Hz"):
        AudioReader(put(tmp_path / "a.wav", noise(10), "PCM_16", rate=50))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "a.wav", noise(5000), "PCM_16")
    with AudioReader(source) as reader:
        os.truncate(source, 3000)
        with pytest.raises(AudioError, match="was changed while it was read"):
            list(reader.blocks())


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    source, pipe = put(tmp_path / "a.flac", noise(5000), "PCM_16"), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(source.read_bytes()))
    writer.start()
    with AudioReader(pipe) as reader:
        writer.join()
        assert reader.frames == 5000


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused_as_a_recording(device: str) -> None:
    with pytest.raises(AudioError, match="is not a regular file"):
        AudioReader(Path(device))


def test_blocks_reach_the_disk_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    with AudioWriter(file, RATE, 2, Encoding("WAV", "PCM_16")) as writer:
        sizes = []
        for _ in range(3):
            writer.write(noise(RATE))
            sizes.append(file.stat().st_size)
    assert np.array_equal(np.diff(sizes), [4 * RATE] * 2)


@pytest.mark.slow
def test_an_hour_passes_in_the_memory_of_minutes(tmp_path: Path) -> None:
    def peak(minutes: int) -> int:
        source, copy = tmp_path / "a.wav", tmp_path / "b.wav"
        with AudioWriter(source, 4000, 1, Encoding("WAV", "PCM_U8")) as writer:
            for _ in range(minutes):
                writer.write(np.zeros((240_000, 1), np.float32))
        tracemalloc.start()
        try:
            with AudioReader(source) as reader, AudioWriter(copy, 4000, 1, Encoding("WAV", "PCM_U8")) as out:
                for block in reader.blocks():
                    out.write(block)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Both are longer than a block. The lesser of two: what other threads take is counted too.
    assert min(peak(60), peak(60)) < 1.3 * min(peak(6), peak(6))


def test_a_full_disk_leaves_no_result(tmp_path: Path) -> None:
    """A disk that is full only when the file is closed cannot be had here: the file is cut instead."""
    file = tmp_path / "a.wav"
    writer = AudioWriter(file, RATE, 2, Encoding("WAV", "PCM_16"))
    with pytest.raises(OutputError, match="is the disk full"), writer:
        writer.write(noise(5000))
        writer._sound.close()
        os.truncate(file, 5000)  # the header is written, the samples are gone
