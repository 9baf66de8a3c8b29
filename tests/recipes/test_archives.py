"""A sound comes out of each kind of archive as it went in."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.nano import RecipeError
from recipes.nano.archives import open_sound, read_cat, read_rcc
from recipes.nano.signals import decode


def wav(frequency: float = 440.0) -> bytes:
    """A tenth of a second of a stereo tone."""
    tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(1600) / 16000)
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone, tone], axis=1), 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def qt_resource(content: bytes, flags: int, version: int = 2) -> bytes:
    """A resource with the one file `animals/dog.wav`; `content` as stored."""
    names = b""
    offsets = []
    for name in ("animals", "dog.wav"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    time = b"" if version < 2 else bytes(8)
    tree = struct.pack(">IHII", 0, 2, 1, 1) + time  # the root: one child, node 1
    tree += struct.pack(">IHII", offsets[0], 2, 1, 2) + time
    tree += struct.pack(">IHHHI", offsets[1], flags, 0, 0, 0) + time
    data = struct.pack(">I", len(content)) + content
    start = 20
    header = b"qres" + struct.pack(">IIII", version, start, start + len(tree), start + len(tree) + len(data))
    return header + tree + data + names


def catalogue(sounds: list[bytes]) -> bytes:
    """A sound catalogue of the newer kind."""
    table, body = b"", b""
    for number, sound in enumerate(sounds):
        name = f"sound {number}".encode()
        offset = 8 * len(sounds) + len(body)
        table += struct.pack("<II", offset | 0x80000000, len(sound))
        body += bytes([len(name)]) + name + sound
    return table + body


@pytest.mark.parametrize("name", ["sounds.zip", "sounds.pk3"])
def test_a_member_of_a_zip_is_decoded_to_mono(tmp_path: Path, name: str) -> None:
    (tmp_path / "game").mkdir()
    with zipfile.ZipFile(tmp_path / "game" / name, "w") as archive:
        archive.writestr("animals/dog.wav", wav())
    audio, rate = decode(open_sound(tmp_path, "game", f"{name}!animals/dog.wav"), "dog.wav")
    assert rate == 16000
    assert audio.shape == (1600,)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("version", [1, 2])
def test_a_qt_resource_gives_plain_and_compressed_files(version: int) -> None:
    sound = wav()
    packed = struct.pack(">I", len(sound)) + zlib.compress(sound)
    assert read_rcc(qt_resource(sound, 0, version), "animals/dog.wav") == sound
    assert read_rcc(qt_resource(packed, 1, version), "animals/dog.wav") == sound


def test_a_qt_resource_without_the_file_says_so() -> None:
    resource = qt_resource(wav(), 0)
    for member in ("animals/cat.wav", "animals", "animals/dog.wav/more", "dog.wav"):
        with pytest.raises(KeyError):
            read_rcc(resource, member)


def test_a_catalogue_gives_its_entry_by_number() -> None:
    sounds = [wav(220), wav(440), wav(880)]
    assert [read_cat(catalogue(sounds), number) for number in ("000", "001", "002")] == sounds
    with pytest.raises(KeyError):
        read_cat(catalogue(sounds), "003")


@pytest.mark.parametrize(
    "path", ["absent.wav", "absent.zip!dog.wav", "broken.zip!a", "broken.rcc!a", "broken.cat!1"]
)
def test_what_cannot_be_opened_is_one_sentence_that_names_the_package(tmp_path: Path, path: str) -> None:
    (tmp_path / "game").mkdir()
    for broken in ("broken.zip", "broken.rcc", "broken.cat"):
        (tmp_path / "game" / broken).write_bytes(b"no archive at all")
    with pytest.raises(RecipeError, match="Debian package game") as refusal:
        open_sound(tmp_path, "game", path)
    assert "\n" not in str(refusal.value)


def test_what_is_no_sound_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"cannot decode bark\.ogg"):
        decode(b"text", "bark.ogg")
