"""The page in a real Chromium, on a real server: what it shows, plays, saves, and asks for."""

from __future__ import annotations

import wave
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from flowsep_serve.guard import Rules, read_keys
from flowsep_serve.service import Service
from tests.serve.conftest import Gate, Serve, heard, listening, recording, sound
from tests.serve.pages import DESK, MARKS, ask, give, job_id, opened, saved, until

pytestmark = MARKS
QUERIES = ["dog barking", "rain", "a man speaking"]


def mixed(page: Page) -> np.ndarray[Any, Any]:
    """The mix that the page saves."""
    with wave.open(BytesIO(saved(page, "#save-mix"))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return samples.reshape(-1, file.getnchannels()) / np.float32(32768)


def stems_of(address: str, page: Page) -> list[bytes]:
    job = httpx.get(f"{address}/v1/jobs/{job_id(page)}").json()
    return [httpx.get(address + stem["url"]).content for stem in job["stems"]]


#: Levels that the audio graph plays, a number a track, over some tenths of a second.
LISTEN = """async () => {
  const { mixer } = await import("/page/desk.js");
  const analysers = mixer.gains.map((gain) => {
    const analyser = mixer.context.createAnalyser();
    gain.connect(analyser);
    return analyser;
  });
  await mixer.seek(0);
  await mixer.play();
  const levels = analysers.map(() => 0);
  const samples = new Float32Array(2048);
  for (let i = 0; i < 15; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    analysers.forEach((analyser, track) => {
      analyser.getFloatTimeDomainData(samples);
      if (i > 6) levels[track] = Math.max(levels[track], ...samples.map(Math.abs));
    });
  }
  mixer.pause();
  return levels;
}"""


def test_three_queries_become_a_desk_of_four_tracks(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address) as page:
        give(page, recording(sound(2)))
        page.wait_for_selector("#source-picture")
        ask(page, *QUERIES)
        page.wait_for_selector(DESK)
        assert page.locator("#tracks h3").all_inner_texts() == [*QUERIES, "the rest"]
        stems = stems_of(address, page)

        # what is saved is what the API gives
        assert saved(page, "[aria-label='Download rain']") == stems[1]
        place = f"{address}/v1/jobs/{job_id(page)}/stems.zip"
        assert saved(page, "#save-all") == httpx.get(place).content

        # the mix follows mute, solo and gain
        tracks = [heard(stem) for stem in stems]
        clipped = np.clip(sum(tracks), -1, 1)
        np.testing.assert_allclose(mixed(page), clipped, atol=1e-4)
        page.click("[aria-label='Mute rain']")
        clipped = np.clip(tracks[0] + tracks[2] + tracks[3], -1, 1)
        np.testing.assert_allclose(mixed(page), clipped, atol=1e-4)
        page.click("[aria-label='Solo dog barking']")
        page.fill("[aria-label='Gain of dog barking']", "0.5")
        np.testing.assert_allclose(mixed(page), np.clip(tracks[0] / 2, -1, 1), atol=1e-4)


def test_solo_and_mute_change_what_the_audio_graph_plays(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address) as page:
        give(page, recording(sound(2)))
        ask(page, "dog barking", "rain")
        page.wait_for_selector(DESK)
        levels = page.evaluate(LISTEN)
        assert all(level > 1e-3 for level in levels), levels
        page.click("[aria-label='Mute rain']")
        assert page.get_attribute("[aria-label='Mute rain']", "aria-pressed") == "true"
        levels = page.evaluate(LISTEN)
        assert levels[0] > 1e-3 and levels[1] < 1e-3 and levels[2] > 1e-3, levels
        page.click("[aria-label='Mute rain']")
        page.click("[aria-label='Solo rain']")
        levels = page.evaluate(LISTEN)
        assert levels[0] < 1e-3 and levels[1] > 1e-3 and levels[2] < 1e-3, levels


def test_the_tracks_are_seen_and_sought_together(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address) as page:
        give(page, recording(sound(4)))
        ask(page, "rain")
        page.wait_for_selector(DESK)
        page.locator(".stage").nth(1).click(position={"x": 3, "y": 10})
        early = page.inner_text("#clock")
        box = page.locator(".stage").nth(1).bounding_box()
        assert box is not None
        page.locator(".stage").nth(1).click(position={"x": box["width"] / 2, "y": 10})
        assert early in ("0:00.0", "0:00.1") and page.inner_text("#clock") in ("0:01.9", "0:02.0", "0:02.1")
        places = page.eval_on_selector_all(".needle", "all => all.map((each) => each.style.left)")
        assert len(set(places)) == 1
        page.click("#play")
        until(page, "parseFloat(document.getElementById('seek').value) > 2.2")
        assert page.inner_text("#play") == "Pause"
        page.click("#play")
        assert page.inner_text("#play") == "Play"
        page.fill("#seek", "1")
        assert page.inner_text("#clock") == "0:01.0"


def test_the_example_is_one_key_away_and_the_desk_is_played_by_keys(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address) as page:
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "example":
                break
        page.keyboard.press("Enter")
        page.wait_for_selector(DESK)
        until(page, "document.activeElement.id === 'play'")
        page.keyboard.press("Space")
        until(page, "parseFloat(document.getElementById('seek').value) > 0.1")
        page.keyboard.press("Tab")
        page.keyboard.press("End")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Mute dog barking"
        page.keyboard.press("Space")
        assert page.get_attribute("[aria-label='Mute dog barking']", "aria-pressed") == "true"


def test_everything_but_a_sound_begins_with_that_sound_muted(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address) as page:
        give(page)
        ask(page, "everything but the rain")
        page.wait_for_selector(DESK)
        assert page.locator("#tracks h3").all_inner_texts() == ["rain", "everything but rain"]
        rest = heard(stems_of(address, page)[1])
        np.testing.assert_allclose(mixed(page), np.clip(rest, -1, 1), atol=1e-4)


def test_a_file_can_be_dropped_and_a_sound_recorded(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address, permissions=["microphone"]) as page:
        page.evaluate("""() => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(9)], "dropped.wav"));
          const event = new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
          document.getElementById("drop").dispatchEvent(event);
        }""")
        until(page, "document.getElementById('source-name').textContent.includes('dropped.wav')")
        page.click("#record")
        until(page, "document.getElementById('record').textContent === 'Stop recording'")
        page.wait_for_timeout(400)
        page.click("#record")
        until(page, "document.getElementById('source-name').textContent.includes('recording.wav')")
        ask(page, "rain")
        page.wait_for_selector(DESK)


def test_errors_are_sentences(browser: Browser, serve: Serve) -> None:
    service = serve(max_length=1)
    with listening(service) as address, opened(browser, address) as page:
        ask(page, "rain")
        assert "There is no recording yet" in page.inner_text("#message:not([hidden])")
        give(page, b"no sound")
        ask(page, "rain")
        until(page, "document.getElementById('message').textContent.includes('is not audio')")
        give(page, recording(sound(1.5)))
        ask(page, "rain")
        until(page, "document.getElementById('message').textContent.includes('longer than 1 s')")
        give(page)
        ask(page, "rain")
        page.wait_for_selector(DESK)
        assert page.is_hidden("#message")
        page.route("**/v1/jobs", lambda route: route.abort())
        ask(page, "rain")
        until(page, "document.getElementById('message').textContent.includes('does not answer')")


def _is_at_rest(service: Service) -> bool:
    return service.worker.is_idle and [path.name for path in service.store.root.iterdir()] == [".lock"]


def test_cancel_stops_the_work_and_leaves_nothing(browser: Browser, serve: Serve, gate: Gate) -> None:
    service = serve()
    with listening(service) as address, opened(browser, address) as page:
        gate.open.clear()
        give(page)
        ask(page, "rain")
        until(page, "document.getElementById('state').textContent === 'Separating.'")
        page.click("#cancel")
        page.wait_for_selector("#work", state="hidden")
        until(page, "location.hash === ''")
        for _ in range(100):
            if not service.worker.running or service.worker.running[0].is_cancelled:
                break
            page.wait_for_timeout(50)
        gate.open.set()
        for _ in range(100):
            if _is_at_rest(service):
                break
            page.wait_for_timeout(50)
        assert _is_at_rest(service)
        assert gate.steps == 1
        assert page.is_hidden("#message") and page.is_hidden("#desk")
        ask(page, "rain")
        page.wait_for_selector(DESK)


def test_a_page_that_is_loaded_again_goes_on_with_its_job(browser: Browser, serve: Serve, gate: Gate) -> None:
    with listening(serve()) as address, opened(browser, address) as page:
        gate.open.clear()
        give(page)
        ask(page, "everything but rain")
        until(page, "document.getElementById('state').textContent === 'Separating.'")
        page.reload()
        until(page, "document.getElementById('state').textContent === 'Separating.'")
        assert page.input_value("#query") == "everything but rain"
        gate.open.set()
        page.wait_for_selector(DESK)
        assert page.get_attribute("[aria-label='Mute rain']", "aria-pressed") == "true"
        page.reload()
        page.wait_for_selector(DESK)


def test_a_key_is_asked_for(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-sixteen-letters")
    service = serve(Rules(read_keys(tmp_path / "keys"), None))
    with listening(service) as address, opened(browser, address) as page:
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", "a-key-that-is-wrong")
        page.press("#key", "Enter")
        until(page, "document.getElementById('message').textContent.includes('Give a key')")
        page.fill("#key", "a-key-of-sixteen-letters")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-form", state="hidden")
        give(page)
        ask(page, "rain")
        page.wait_for_selector(DESK)
        assert saved(page, "[aria-label='Download rain']")[:4] == b"RIFF"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_accessible_and_fits(browser: Browser, serve: Serve, scheme: Any, width: int) -> None:
    size: Any = {"width": width, "height": 800}
    with (
        listening(serve()) as address,
        opened(browser, address, color_scheme=scheme, viewport=size) as page,
    ):
        for is_done in (False, True):
            if is_done:
                give(page)
                ask(page, "dog barking", "rain")
                page.wait_for_selector(DESK)
                page.click("[aria-label='Mute rain']")
            found = Axe().run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
