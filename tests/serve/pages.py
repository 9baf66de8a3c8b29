"""The page in a real Chromium: opened, given a sound, asked, and looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Page

from tests.serve.conftest import recording

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium here: apt-get install chromium."),
]
SWITCHES = [
    "--no-sandbox",  # CI is root
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
DESK = "#desk:not([hidden])"


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """The page; whatever it does, it asks no other origin and breaks no rule of its policy."""
    context = browser.new_context(accept_downloads=True, **options)
    page = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
    page.goto(address)
    try:
        yield page
    finally:
        context.close()
    assert asked and all(url.startswith((f"{address}/", f"blob:{address}/")) for url in asked), asked
    assert faults == []


def until(page: Page, condition: str) -> None:
    """Waits for a condition in JavaScript. Playwright's own wait needs `eval`, which the page forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def give(page: Page, content: bytes | None = None, name: str = "mix.wav") -> None:
    buffer = recording() if content is None else content
    file: FilePayload = {"name": name, "mimeType": "audio/wav", "buffer": buffer}
    page.set_input_files("#file", file)
    until(page, "document.getElementById('source-name').textContent !== ''")


def ask(page: Page, *queries: str) -> None:
    page.fill("#query", "\n".join(queries))
    page.click("#separate")


def saved(page: Page, selector: str) -> bytes:
    with page.expect_download() as download:
        page.click(selector)
    return Path(download.value.path()).read_bytes()


def job_id(page: Page) -> str:
    return page.url.partition("#job=")[2].partition("&")[0]
