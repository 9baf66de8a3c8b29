"""Warnings of several threads, each told to its own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from flowsep_runtime.errors import FlowSepWarning


class Remarks:
    """Tells the threads' warnings apart, which `warnings.catch_warnings` does not: it is the process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tell: dict[int, Callable[[str], None]] = {}
        self._caught = ExitStack()

    @contextmanager
    def told(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Tells the warnings of this thread as they come, and those of threads that the work has started."""
        number = threading.get_ident()
        with self._lock:
            if not self._tell:
                self._caught.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", FlowSepWarning)
                warnings.showwarning = self._show
            self._tell[number] = tell
        try:
            yield
        finally:
            with self._lock:
                del self._tell[number]
                if not self._tell:
                    self._caught.close()

    def _show(self, message: Warning | str, *_: Any, **__: Any) -> None:
        with self._lock:
            known = self._tell.get(threading.get_ident())
            told = [known] if known is not None else list(self._tell.values())
        for tell in told:
            tell(str(message))
