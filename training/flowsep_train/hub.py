"""Text encoders by name, from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from flowsep_train.given import T5_WEIGHTS, TOKENIZER, weight_files

NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def text_folder(source: str) -> Path:
    """The folder of a text encoder; a name that is no folder is fetched through the hub's own cache.

    Args:
        source: a folder, or a repository's name such as `google/flan-t5-large`.

    Raises:
        ValueError: neither, or it cannot be fetched.
    """
    if Path(source).exists():
        return Path(source)
    if not NAME.fullmatch(source):
        raise ValueError(f"there is no folder {source}: give a text encoder's folder, or its name on the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        folder = Path(hf_hub_download(source, "config.json")).parent
        for name in T5_WEIGHTS:
            try:
                hf_hub_download(source, name)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            break
        for file in weight_files(folder)[1:]:
            hf_hub_download(source, file.name)
        hf_hub_download(source, TOKENIZER)
    except Exception as error:  # the library's own kinds, and those of what it is built on
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{source} cannot be fetched from the Hugging Face hub ({first}): check name and network, or "
            f"give --text a folder with config.json, model.safetensors and {TOKENIZER}"
        ) from error
    return folder
