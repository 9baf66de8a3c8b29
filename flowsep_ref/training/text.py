"""A head start for a text encoder that is trained from nothing.

The published encoder, FLAN-T5, has read the web; a small one starts without knowing that "a dog
barks" and "barking dog" are one thing.  Telling the classes of the trained phrasings apart for a few
hundred steps takes seconds and teaches it that, before the flow has to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowsep_ref.text import TextEncoder

Tokens = Callable[[list[str]], tuple[Tensor, Tensor]]
DROPPED = 0.1  # share of tokens hidden, so that no single word carries a class


def learn_phrasings(
    encoder: TextEncoder, phrasings: dict[str, list[str]], tokens: Tokens, steps: int = 400
) -> float:
    """Train an encoder to tell the labels of their phrasings; gives the last loss.

    Args:
        encoder: trained in place.
        phrasings: label to captions.
        tokens: captions to ids and mask, `[B, 50]` each.
        steps: optimiser steps.
    """
    pairs = [(text, row) for row, label in enumerate(sorted(phrasings)) for text in phrasings[label]]
    ids, mask = tokens([text for text, _ in pairs])
    wanted = torch.tensor([row for _, row in pairs], device=ids.device)
    head = nn.Linear(encoder.shared.embedding_dim, len(phrasings), device=ids.device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 2e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        rows = torch.randint(len(pairs), (min(64, len(pairs)),), device=ids.device)
        kept = mask[rows] * (torch.rand(mask[rows].shape, device=ids.device) > DROPPED)
        kept[:, 0] = mask[rows, 0]
        hidden = encoder(ids[rows], kept)
        pooled = (hidden * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        loss = nn.functional.cross_entropy(head(pooled), wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
