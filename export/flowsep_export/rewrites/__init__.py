"""Exact rewrites: modules that compute what a reference module computes, in fewer or faster operations.

Each is an identity in exact arithmetic, has a test of its own on random input and a paragraph in
docs/rewrites.md. A pass returns a copy of a module in which every module of one kind is replaced; weights are
shared, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def replaced(root: Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> Module:
    """A copy of `root` in which every module of a kind is `by(module)`; parameters and buffers are shared.

    Args:
        root: stays as it is.
        kind: exact class of the modules to replace, below `root`.
        by: makes the replacement of a module.
    """
    tensors = [*root.parameters(), *root.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    result = copy.deepcopy(root, memo)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, by(child))
    return result
