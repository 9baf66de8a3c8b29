"""Training of a small text encoder, and the hidden states of every phrasing.

The published encoder, FLAN-T5, was trained on text of the web; a small one does not know that "a dog barks"
and "barking dog" are the same. A few hundred steps of classifying the phrasings teach it that in seconds.
Either is frozen while the flow is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from flowsep_ref.text import TextEncoder

#: Share of tokens replaced by random ones, so that unknown words around the known do no harm.
REPLACED = 0.15
#: Ids up to this one are padding, end and unknown.
SPECIAL = 2
BATCH = 64
#: Forms in which people ask for what is left when a sound is taken away; the first is the runtime's.
COMPLEMENTS = (
    "everything except {}",
    "everything but {}",
    "all but {}",
    "all sounds except {}",
    "everything apart from {}",
    "everything other than {}",
    "remove {}",
    "without {}",
)
#: Share of the text encoder's examples that are complements.
FLIPPED = 0.3


def complement(caption: str, rng: np.random.Generator) -> str:
    """A query for everything except what a caption names; half of them in the first form."""
    form = 0 if rng.random() < 0.5 else int(rng.integers(len(COMPLEMENTS)))
    return COMPLEMENTS[form].format(caption)


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer that neither pads nor truncates, whatever its file says.

    Raises:
        ValueError: the file is missing or no tokenizer.
    """
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizer.json that can be read") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokens(tokenizer: Tokenizer, captions: Sequence[str], length: int = 50) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, length]`; an empty caption gets a mask of all ones (docs/model.md#text-encoder)."""
    ids, mask = torch.zeros(len(captions), length, dtype=torch.long), torch.zeros(len(captions), length)
    for row, caption in enumerate(captions):
        found = tokenizer.encode(caption).ids
        found = found[: length - 1] + found[-1:] if len(found) > length else found
        ids[row, : len(found)] = torch.tensor(found)
        mask[row, : len(found) if caption else length] = 1
    return ids, mask


def learn_phrasings(
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    captions: Mapping[str, Sequence[str]],
    sentences: Mapping[str, Sequence[str]] | None = None,
    steps: int = 600,
    seed: int = 0,
    learning_rate: float = 1e-3,
) -> float:
    """Train an encoder from nothing to tell the labels of their phrasings, and complements from captions.

    Returns the last loss.

    Raises:
        ValueError: a class has no sentences.

    Args:
        encoder: trained in place.
        tokenizer: of its vocabulary.
        captions: label to captions.
        sentences: label to many more, made of templates; half of the examples are of them.
        steps: optimiser steps.
        seed: of what is drawn; the weights are the caller's.
        learning_rate: at its highest.
    """
    rng = np.random.default_rng(seed)
    labels = sorted(captions)
    missing = [label for label in labels if sentences is not None and not sentences.get(label)]
    if missing:
        raise ValueError(
            f"the sentences lack {len(missing)} of the captions' classes, such as {missing[0]!r}: give each "
            f"class both, or leave --sentences out"
        )
    head = nn.Linear(encoder.shared.embedding_dim, len(labels) + 1)
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *head.parameters()], learning_rate, weight_decay=0.05
    )
    decay = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05
    )
    loss = torch.zeros(())
    for _ in range(steps):
        wanted = rng.integers(len(labels), size=BATCH)
        pools = [(captions if rng.random() < 0.5 else sentences or captions)[labels[row]] for row in wanted]
        drawn = [pool[int(rng.integers(len(pool)))] for pool in pools]
        flipped = rng.random(BATCH) < FLIPPED
        drawn = [complement(text, rng) if flip else text for text, flip in zip(drawn, flipped, strict=True)]
        ids, mask = tokens(tokenizer, drawn)
        noisy = torch.from_numpy(rng.random(ids.shape) < REPLACED) & (mask > 0) & (ids > SPECIAL)
        other = torch.from_numpy(rng.integers(SPECIAL + 1, tokenizer.get_vocab_size(), ids.shape))
        logits = head(pooled(encoder(torch.where(noisy, other, ids), mask), mask))
        loss = nn.functional.cross_entropy(logits[:, :-1], torch.from_numpy(wanted), label_smoothing=0.05)
        loss = loss + nn.functional.binary_cross_entropy_with_logits(
            logits[:, -1], torch.from_numpy(flipped.astype(np.float32))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return float(loss.detach())


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states `[B, 50, D]` of real tokens: `[B, D]`."""
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class QueryEncoder:
    """Captions to hidden states, with a cache, because the encoder is frozen and captions repeat.

    No module of its own, so that a flow's checkpoints do not carry the text encoder.

    Args:
        encoder: trained.
        tokenizer: of its vocabulary.
        remembered: captions kept, each `[50, D]` in half precision.
    """

    def __init__(self, encoder: TextEncoder, tokenizer: Tokenizer, remembered: int = 16384) -> None:
        self.encoder = encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.remembered = remembered
        self.memory: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Hidden states `[B, 50, D]` and mask `[B, 50]`, float32; "" is the unconditional input."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.memory]
        # one by one on a CPU: there, a caption's rounding then does not depend on its neighbours, so that
        # a resumed training, whose memory is empty, repeats the killed one
        groups = [new] if new and torch.device(device).type != "cpu" else [[caption] for caption in new]
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for group in groups:
            ids, mask = (rows.to(device) for rows in tokens(self.tokenizer, group))
            # outside of autocast: what is remembered is used a thousand times
            with torch.autocast(ids.device.type, enabled=False):
                hidden = self.encoder.to(device)(ids, mask).half()
            found.update(zip(group, zip(hidden, mask, strict=True), strict=True))
        rows = [self.memory.get(caption) or found[caption] for caption in captions]
        for caption, row in found.items():
            if len(self.memory) < self.remembered:
                self.memory[caption] = row
        return torch.stack([row[0].float() for row in rows]), torch.stack([row[1] for row in rows])
