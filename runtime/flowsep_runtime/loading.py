"""Graphs that are loaded by threads before they are used."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress


def load_on_two_threads(load: Callable[[str], None], graphs: Iterable[str], wait: bool) -> None:
    """Loads graphs in their order, two at a time. What cannot be loaded says so when it is used.

    Args:
        load: Loads a graph, in any thread.
        graphs: Their names.
        wait: Return when all are loaded, not at once.
    """
    waiting = deque(graphs)
    ended = threading.Semaphore(0)

    def work() -> None:
        # No daemon: a backend must not be cut off in its work. But a program that ends need not wait for
        # more than one graph.
        with suppress(IndexError):
            while threading.main_thread().is_alive():
                graph = waiting.popleft()
                with suppress(Exception):
                    load(graph)
        ended.release()

    for _ in range(2):
        threading.Thread(target=work, name="flowsep-load-ahead").start()
    if wait:
        # Not Thread.join: if it is interrupted, Python before 3.13 takes the thread for ended, and cuts it
        # off at the program's end.
        for _ in range(2):
            ended.acquire()
