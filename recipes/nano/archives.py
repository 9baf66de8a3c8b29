"""Files of unpacked Debian packages, and of the archives in them.

An address `archive!inside` names a member:

    x.zip!name, x.pk3!name   zip archives (UFO:AI, 0 A.D.)
    x.rcc!name               Qt binary resources (GCompris), format 1 to 3
    x.cat!number             entry of an OpenTTD sound catalogue
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from recipes.nano import RecipeError

_RCC_COMPRESSED, _RCC_FOLDER, _RCC_ZSTANDARD = 1, 2, 4


def open_sound(root: Path, package: str, path: str) -> bytes:
    """Return the bytes of the sound file `path` of `package`.

    Args:
        root: the folder that holds one folder a package, each unpacked with `dpkg -x`.
        package: the package's name.
        path: the file inside the package, or `archive!inside`.

    Raises:
        RecipeError: there is no such file or member, or the archive is damaged.
    """
    outer, inside, member = path.partition("!")
    file = root / package / outer
    try:
        return _member(file, member) if inside else file.read_bytes()
    except (OSError, KeyError, IndexError, ValueError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise RecipeError(
            f"cannot read {path} of the Debian package {package} ({error}); this recipe needs Debian 12: "
            f"delete {root / package} and its .deb and run it again there."
        ) from error


def _member(file: Path, member: str) -> bytes:
    if file.suffix in (".zip", ".pk3"):
        with zipfile.ZipFile(file) as archive:
            return archive.read(member)
    readers: dict[str, Callable[[bytes, str], bytes]] = {".rcc": read_rcc, ".cat": read_cat}
    if file.suffix not in readers:
        raise ValueError(f"{file.suffix} is not a known kind of archive")
    return readers[file.suffix](file.read_bytes(), member)


def read_rcc(archive: bytes, member: str) -> bytes:
    """Return one file of a Qt binary resource.

    The header is `qres`, then the version and the offsets of the tree, data and name blocks, big-endian.
    A node is (name offset, flags), then for a folder (number of children, first child), for a file
    (…, data offset); a name is (UTF-16 length, hash, text); a piece of data is (length, bytes).

    Raises:
        KeyError: no such member.
        ValueError: not a Qt resource, or compressed in a way that the standard library cannot undo.
    """
    if archive[:4] != b"qres":
        raise ValueError("not a Qt resource")
    version, tree, data, names = struct.unpack_from(">IIII", archive, 4)
    node_size = 14 if version < 2 else 22  # version 2 added the time of the last change

    def name_of(node: int) -> str:
        (offset,) = struct.unpack_from(">I", archive, node)
        (length,) = struct.unpack_from(">H", archive, names + offset)
        start = names + offset + 6
        return archive[start : start + 2 * length].decode("utf-16-be")

    node = tree  # the nameless root folder
    for part in member.split("/"):
        (flags,) = struct.unpack_from(">H", archive, node + 4)
        if not flags & _RCC_FOLDER:
            raise KeyError(member)
        count, first = struct.unpack_from(">II", archive, node + 6)
        children = (tree + (first + k) * node_size for k in range(count))
        found = next((child for child in children if name_of(child) == part), None)
        if found is None:
            raise KeyError(member)
        node = found

    flags, _, offset = struct.unpack_from(">HII", archive, node + 4)
    if flags & _RCC_FOLDER:
        raise KeyError(member)
    if flags & _RCC_ZSTANDARD:
        raise ValueError(f"{member} is compressed with Zstandard")
    (length,) = struct.unpack_from(">I", archive, data + offset)
    content = archive[data + offset + 4 : data + offset + 4 + length]
    # qCompress puts the length of the plain text before the zlib stream.
    return zlib.decompress(content[4:]) if flags & _RCC_COMPRESSED else content


def read_cat(catalogue: bytes, number: str) -> bytes:
    """Return one entry, a WAV file, of an OpenTTD sound catalogue.

    The catalogue starts with a (offset, size) pair, little-endian, for each entry; an entry is its name, with
    the length in front, and a RIFF file.

    Raises:
        KeyError: no such entry.
        ValueError: the entry is not a WAV file.
    """
    (table_bytes,) = struct.unpack_from("<I", catalogue, 0)
    entries = (table_bytes & 0x7FFFFFFF) // 8  # the first entry's data starts where the table ends
    index = int(number)
    if not 0 <= index < entries:
        raise KeyError(number)
    (offset,) = struct.unpack_from("<I", catalogue, 8 * index)
    offset &= 0x7FFFFFFF  # the top bit marks the newer kind of catalogue
    riff = offset + 1 + catalogue[offset]
    if catalogue[riff : riff + 4] != b"RIFF":
        raise ValueError(f"entry {number} is not a WAV file")
    (length,) = struct.unpack_from("<I", catalogue, riff + 4)
    return catalogue[riff : riff + 8 + length]
