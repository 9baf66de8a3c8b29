"""One lock a graph, so that a graph can be loaded while another runs."""

from __future__ import annotations

import threading


class GraphLocks:
    """`with locks(graph):` is alone with the graph of that name."""

    def __init__(self) -> None:
        self._all = threading.Lock()
        self._of: dict[str, threading.RLock] = {}

    def __call__(self, graph: str) -> threading.RLock:
        with self._all:
            return self._of.setdefault(graph, threading.RLock())
