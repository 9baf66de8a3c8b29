"""Names of results: of the recording and the query, or by a template of `--name`."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from string import Formatter

from flowsep_runtime.app.recordings import Recording
from flowsep_runtime.audio.writing import CONTAINERS
from flowsep_runtime.errors import OptionError

BESIDE = "{stem}.{query}"
MIRRORED = "{folder}/{stem}.{query}"

LONGEST_NAME = 255  # bytes, on every common file system
LONGEST_SLUG = 60  # characters
_FIELDS = ("folder", "stem", "ext", "query", "number")


def slug(query: str) -> str:
    """A query as a part of a file name: lower case, letters and digits of any script, hyphens between
    words.

    Signs stand by their Unicode names if there is no word. A long query is cut and ends in a part of its
    checksum, so that two of them do not have one name.
    """
    text = unicodedata.normalize("NFKC", query).lower()
    name = _words(text)
    if not name:
        signs = [sign for sign in text if unicodedata.category(sign)[0] in "SP"]
        name = _words(" ".join(unicodedata.name(sign, "") for sign in signs).lower()) or "target"
    if len(name) > LONGEST_SLUG:
        digest = hashlib.sha256(query.encode(errors="surrogatepass")).hexdigest()[:8]
        room = LONGEST_SLUG - len(digest) - 1
        name = f"{name[: room + 1].rpartition('-')[0] or name[:room]}-{digest}"
    return name


def _words(text: str) -> str:
    return "-".join(re.findall(r"\w+", text)).replace("_", "-").strip("-")


def check_template(template: str) -> None:
    """Refuses a template that gives no names.

    Raises:
        OptionError: If it is none.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise OptionError(f"--name {template!r} is not a template: {error}.") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in _FIELDS or form or conversion):
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise OptionError(f"--name knows {known}, and not {{{name}}}.")
    if Path(template).name in ("", "..") or template.endswith("/"):
        raise OptionError(f"--name {template!r} names a folder: end it with the name of a file.")


def named(template: str, recording: Recording, label: str, number: int) -> Path:
    """The relative path of a result, which a file system takes.

    Args:
        template: One that `check_template` lets pass. Without an extension that can be written it is given
            the recording's own, or `.wav`.
        recording: Where the sound comes from.
        label: The query, as it is said in a name.
        number: The query's place in its list, from 1.
    """
    source = recording.path or Path("standard-input")
    is_known = source.suffix.lower() in CONTAINERS
    has_ending = Path(template).suffix.lower() in CONTAINERS or (is_known and template.endswith(".{ext}"))
    ending = "" if has_ending else source.suffix if is_known else ".wav"
    fields = {"folder": recording.folder, "ext": source.suffix[1:], "query": slug(label), "number": number}
    stem = source.stem
    path = Path(template.format(stem=stem, **fields) + ending)
    excess = len(os.fsencode(path.name)) - LONGEST_NAME
    if excess > 0:
        stem = os.fsencode(stem)[:-excess].decode(errors="ignore")
        path = Path(template.format(stem=stem, **fields) + ending)
    return path
