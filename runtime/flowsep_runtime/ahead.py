"""Graphs that are loaded by threads before they are used."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from flowsep_runtime.errors import BackendError


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
        try:
            while threading.main_thread().is_alive():
                try:
                    graph = waiting.popleft()
                except IndexError:
                    return
                with suppress(BackendError):
                    load(graph)
        finally:
            ended.release()

    threads = [threading.Thread(target=work, name="flowsep-load-ahead") for _ in range(2)]
    for thread in threads:
        thread.start()
    if wait:
        # No join: before Python 3.13 one that Ctrl-C interrupts takes its thread for ended, so the program's
        # end does not wait for the thread, and the process crashes or hangs.
        for _ in threads:
            ended.acquire()
