"""Graphs that are loaded by threads before they are used."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from flowsep_runtime.ahead import load_on_two_threads


@pytest.mark.skipif(os.name != "posix", reason="no signals between threads")
def test_an_interrupt_leaves_threads_that_the_programs_end_waits_for() -> None:
    loading = threading.Barrier(3)
    go_on = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def load(graph: str) -> None:
        loading.wait(60)
        go_on.wait(60)

    def interrupt() -> None:
        loading.wait(60)
        time.sleep(0.2)  # The main thread waits by then.
        signal.pthread_kill(main, signal.SIGINT)

    killer = threading.Thread(target=interrupt)
    killer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            load_on_two_threads(load, ["one", "two"], wait=True)
        threads = [thread for thread in threading.enumerate() if thread.name == "flowsep-load-ahead"]
        assert [thread.is_alive() for thread in threads] == [True, True], "one is taken for ended"
    finally:
        go_on.set()
    killer.join(60)
    for thread in threads:
        thread.join(60)
