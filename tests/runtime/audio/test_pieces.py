"""All the sound of a file is read, or a sentence says why not: never a part of it in silence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flowsep_runtime import AudioError, FlowSepWarning
from flowsep_runtime.audio.reading import AudioReader

RATE = 44100


def sound(frames: int, channels: int = 1, seed: int = 0) -> Any:
    """Noise that sets in after silence: an encoder spends bits where they are needed."""
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (frames, channels)).astype(np.float32)
    samples[: frames // 2] = 0
    return samples


def file(path: Path, samples: Any, rate: int = RATE) -> bytes:
    soundfile.write(path, samples, rate, format="OGG" if path.suffix == ".opus" else None)
    return path.read_bytes()


def opus(path: Path, samples: Any, rate: int = 48000) -> bytes:
    soundfile.write(path, samples, rate, "OPUS", format="OGG")
    return path.read_bytes()


def read(path: Path) -> Any:
    with AudioReader(path) as reader:
        blocks = list(reader.blocks(1000))
        assert sum(map(len, blocks)) == reader.frames
    return np.concatenate(blocks)


def calmly(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(path)


@pytest.mark.parametrize(
    "name",
    ["a.mp3", "a.ogg", "a.flac", "a.wav", "a.au", "a.opus", "a.rf64", "a.caf", "a.aiff", "a.w64", "a.voc"],
)
def test_recordings_that_were_joined_are_read_one_after_the_other(tmp_path: Path, name: str) -> None:
    """Chained Ogg is what every dump of a radio stream is; the others come of `cat`."""
    encode = opus if name.endswith("opus") else file
    parts = [encode(tmp_path / name, sound(frames, 2, frames)) for frames in (50_000, 30_001, 4000)]
    expected = []
    for number, part in enumerate(parts):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(part)
        expected.append(calmly(path))
    (tmp_path / name).write_bytes(b"".join(parts))
    assert np.array_equal(calmly(tmp_path / name), np.concatenate(expected))


def test_a_voc_that_is_cut_short_is_no_secret(tmp_path: Path) -> None:
    """libsndfile reads what there is of a block and says nothing."""
    path = tmp_path / "a.voc"
    content = file(path, sound(50_000))
    path.write_bytes(content[:60_026])
    with pytest.warns(FlowSepWarning, match=r"a\.voc is cut short: \d+ bytes of the sound"):
        assert 0 < len(read(path)) <= 30_000


@pytest.mark.parametrize("name", ["a.caf", "a.w64"])
def test_a_size_beyond_any_file_is_no_place_in_it(tmp_path: Path, name: str) -> None:
    """It once ended in an OverflowError of the system's seek."""
    path = tmp_path / name
    content = bytearray(file(path, sound(5000)))
    at = content.index(b"data")
    start, width, order = (at + 4, 8, "big") if name == "a.caf" else (at + 16, 8, "little")
    content[at] ^= 1  # no sound, so that it is passed over
    content[start : start + width] = (2**63 - 1).to_bytes(width, order)  # type: ignore[arg-type]
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"is not audio|is empty"):
        read(path)


def info(content: bytes) -> int:
    """Position of the number of frames in the header frame."""
    place = max(content.find(b"Info"), content.find(b"Xing"))
    assert place > 0
    return place + 8


@pytest.mark.parametrize("said", [1, 20])
def test_an_mp3_whose_header_counts_too_few_frames_is_read_to_its_end(tmp_path: Path, said: int) -> None:
    path = tmp_path / "a.mp3"
    content = file(path, sound(100_000))
    whole = calmly(path)
    place = info(content)
    path.write_bytes(content[:place] + said.to_bytes(4, "big") + content[place + 4 :])
    assert np.array_equal(calmly(path), whole)


def without_header(content: bytes) -> bytes:
    """The frames with sound only: the second begins where the first's bit rate says."""
    first = content.index(b"\xff\xfb")
    following = content.index(content[first : first + 2], first + 4)
    return content[following:]


def test_an_mp3_without_a_header_is_read_to_its_end(tmp_path: Path) -> None:
    """Its length is then guessed from its first frame, which is silent and so far too short."""
    path = tmp_path / "a.mp3"
    path.write_bytes(without_header(file(path, sound(10 * RATE))))
    assert soundfile.info(path).frames != 10 * RATE
    found = calmly(path)
    assert abs(len(found) - 10 * RATE) < 4 * 1152
    assert np.abs(found[-RATE:]).max() > 0.1


def test_tags_within_an_mp3_are_no_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    content = file(path, sound(60_000))
    tags = b"ID3\x04\0\0\0\0\x02\0" + bytes(256), b"TAG" + bytes(125)
    path.write_bytes(tags[0] + content + tags[1] + tags[0] + content + tags[1])
    assert len(calmly(path)) == 120_000


def test_frames_that_libsndfile_does_not_give_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: the frames are counted, and what is missing is said."""
    path = tmp_path / "a.mp3"
    content = file(path, sound(100_000))
    place = info(content)
    path.write_bytes(content[:place] + (20).to_bytes(4, "big") + content[place + 4 :])
    monkeypatch.setattr("flowsep_runtime.audio.content.Piece.covers", lambda *_: True)
    with pytest.raises(AudioError, match=r"a.mp3 holds 2\.\d\d s of sound, of which only 0\.\d\d s can be"):
        read(path)


@pytest.mark.parametrize("name", ["a.ogg", "a.flac", "a.wav", "a.mp3"])
def test_a_recording_that_changes_its_rate_is_refused(tmp_path: Path, name: str) -> None:
    parts = file(tmp_path / name, sound(50_000), RATE), file(tmp_path / name, sound(50_000, 2), 48000)
    (tmp_path / name).write_bytes(b"".join(parts))
    with pytest.raises(AudioError, match=rf"{name} changes from 1 channels at 44100 Hz to 2 at 48000 Hz"):
        read(tmp_path / name)


@pytest.mark.parametrize("riff", [0, 8, 36])
def test_a_wav_whose_recorder_crashed_is_read_with_a_warning(tmp_path: Path, riff: int) -> None:
    """The sizes are written at the end; until then they are zero."""
    path = tmp_path / "a.wav"
    content = file(path, sound(50_000, 2))
    whole = calmly(path)
    data = content.index(b"data") + 4
    path.write_bytes(
        content[:4] + riff.to_bytes(4, "little") + content[8:data] + bytes(4) + content[data + 4 :]
    )
    with pytest.warns(FlowSepWarning, match=r"a\.wav was not finished by its recorder"):
        found = read(path)
    assert np.array_equal(found, whole)


def test_an_empty_wav_with_tags_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", RATE, 1) as empty:
        empty.title = "nothing"
    with pytest.raises(AudioError, match="is empty: it holds no audio samples"):
        read(path)


def test_a_wav_that_goes_on_behind_its_end_is_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = file(path, sound(50_000))
    data = content.index(b"data") + 4
    said = (20_000).to_bytes(4, "little")
    path.write_bytes(
        content[:4] + (data + 20_000 - 4).to_bytes(4, "little") + content[8:data] + said + content[data + 4 :]
    )
    with pytest.warns(FlowSepWarning, match=r"a\.wav goes on for 80000 bytes after the end .* not read"):
        assert len(read(path)) == 10_000


def test_an_au_that_goes_on_behind_its_end_is_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "a.au"
    content = file(path, sound(50_000))
    path.write_bytes(content[:8] + (20_000).to_bytes(4, "big") + content[12:])
    with pytest.warns(FlowSepWarning, match=r"a\.au goes on for 80000 bytes after the end .* not read"):
        assert len(read(path)) == 10_000


def test_chunks_and_some_padding_behind_a_wav_are_nothing_to_speak_of(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = file(path, sound(50_001))
    for more in (bytes(1000), b"LIST" + (4).to_bytes(4, "little") + b"INFO", b"ID3" + bytes(500)):
        path.write_bytes(content + more)
        assert len(calmly(path)) == 50_001


@pytest.mark.parametrize(
    "start",
    [b"OggS", b"OggS\0", b"fLaC", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEdata", b".snd", b"ID3", b"\xff\xfb"],
)
def test_a_beginning_and_nothing_more_is_no_recording(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "a"
    for content in (start, start + bytes(10), start + bytes(5000), start + b"\xff" * 5000):
        path.write_bytes(content)
        with pytest.raises(AudioError):
            AudioReader(path)


def test_a_file_of_many_parts_takes_no_memory(tmp_path: Path) -> None:
    """Garbage between the pages of an Ogg is passed over, window by window."""
    path = tmp_path / "a.ogg"
    content = file(path, sound(50_000))
    path.write_bytes(content + bytes(3 << 20) + content)
    assert len(calmly(path)) == 100_000


def test_a_list_of_tags_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    """libsndfile would read it for ever."""
    path = tmp_path / "a.wav"
    content = file(path, sound(10_000))
    tags = b"INFOIAR\x99" + (0xFFFFFFF8).to_bytes(4, "little") + bytes(range(1, 41))
    path.write_bytes(content[:36] + b"LIST" + len(tags).to_bytes(4, "little") + tags + content[36:])
    assert len(read(path)) == 10_000


def test_a_file_of_nothing_but_beginnings_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF\x04\0\0\0WAVE" * 20_000)
    with pytest.raises(AudioError):
        AudioReader(path)
