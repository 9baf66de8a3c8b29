"""The tokenizer of a bundle, from a file, a folder or the hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer

from flowsep_export.errors import TokenizerError
from flowsep_ref.config import TextConfig
from flowsep_runtime.errors import shown

PUBLISHED = "google/flan-t5-large"
FILE = "tokenizer.json"
PADDING = "<pad>"


def load_tokenizer(source: str | Path, text: TextConfig) -> Tokenizer:
    """Read a tokenizer and check that it fits the model.

    Args:
        source: a `tokenizer.json`, a folder (with that file, or with T5's `spiece.model`), or the
            name of a repository on the Hugging Face hub.
        text: the text encoder that it is for.

    Raises:
        TokenizerError: not there, not a tokenizer, no network, or ids that the model does not have.
    """
    path = Path(source)
    if path.is_file():
        tokenizer = _from_file(path)
    elif (path / FILE).is_file():
        tokenizer = _from_file(path / FILE)
    elif (path / "spiece.model").is_file():
        tokenizer = _from_sentencepiece(path)
    elif path.is_dir():
        raise TokenizerError(
            f"{shown(path)} holds neither {FILE} nor spiece.model: give --tokenizer a tokenizer."
        )
    elif _is_hub_name(str(source)):
        tokenizer = _from_hub(str(source))
    else:
        raise TokenizerError(
            f"There is no tokenizer at {shown(path)}: give a {FILE}, a folder or a hub name."
        )
    size = tokenizer.get_vocab_size()
    if size > text.vocab_size:
        raise TokenizerError(
            f"The tokenizer {shown(str(source))} has {size} tokens and the model {text.vocab_size}: "
            "give --tokenizer the one that the model was trained with."
        )
    return tokenizer


def pad_id(tokenizer: Tokenizer) -> int:
    """The padding id; T5's is 0."""
    found = tokenizer.token_to_id(PADDING)
    return 0 if found is None else found


def _from_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(
            f"{shown(path)} is not a tokenizer that the tokenizers library reads."
        ) from error


def _from_sentencepiece(folder: Path) -> Tokenizer:
    if find_spec("sentencepiece") is None:
        raise TokenizerError(
            f"Converting {shown(folder / 'spiece.model')} takes the sentencepiece package: "
            f"install it (pip install sentencepiece), or give a {FILE}."
        )
    from transformers import T5Tokenizer

    try:
        converted = T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
        return Tokenizer.from_str(converted.backend_tokenizer.to_str())
    except Exception as error:
        raise TokenizerError(
            f"{shown(folder / 'spiece.model')} cannot be converted ({type(error).__name__}): give a {FILE}."
        ) from error


def _is_hub_name(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not name.endswith(".json")


def _from_hub(name: str) -> Tokenizer:
    try:
        return Tokenizer.from_pretrained(name)
    except Exception as error:
        raise TokenizerError(
            f"The tokenizer {name} cannot be fetched from the Hugging Face hub: check name and network, or "
            f"get {FILE} from https://huggingface.co/{name} by hand and give it as --tokenizer {FILE}."
        ) from error


__all__ = ["FILE", "PUBLISHED", "load_tokenizer", "pad_id"]
