"""The page under clicks that come too fast, microphones that fail, and jobs that end badly."""

from __future__ import annotations

import httpx
from playwright.sync_api import Browser

from tests.serve.conftest import Gate, Serve, listening, recording, sound
from tests.serve.pages import DESK, MARKS, ask, give, job_id, opened, until

pytestmark = MARKS


def test_seeking_keeps_the_tracks_in_step_and_draws_once_a_frame(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address) as page:
        give(page, recording(sound(4)))
        ask(page, "dog barking", "rain")
        page.wait_for_selector(DESK)
        page.evaluate("""() => {
          window.starts = [];
          const start = AudioBufferSourceNode.prototype.start;
          AudioBufferSourceNode.prototype.start = function (...given) {
            window.starts.push(given);
            return start.apply(this, given);
          };
        }""")
        page.click("#play")
        stage = page.locator(".stage").first
        for x in (10, 40, 80, 120):
            stage.click(position={"x": x, "y": 10})
        starts = page.evaluate("window.starts")
        assert len(starts) == 5 * 3
        for first in range(0, 15, 3):
            assert starts[first] == starts[first + 1] == starts[first + 2]
        asked, frames = page.evaluate("""async () => {
          const request = window.requestAnimationFrame;
          let asked = 0;
          window.requestAnimationFrame = (course) => { asked += 1; return request(course); };
          let frames = 0;
          for (; frames < 10; frames++) await new Promise((resolve) => request(resolve));
          return [asked, frames];
        }""")
        assert 0 < asked <= frames + 1
        page.click("#play")
        assert page.inner_text("#play") == "Play"


def test_the_microphone_is_asked_for_once_and_is_off_after_a_failure(browser: Browser, serve: Serve) -> None:
    with listening(serve()) as address, opened(browser, address, permissions=["microphone"]) as page:
        page.evaluate("""() => {
          window.streams = [];
          const devices = navigator.mediaDevices;
          const get = devices.getUserMedia.bind(devices);
          devices.getUserMedia = async (wish) => {
            const stream = await get(wish);
            window.streams.push(stream);
            await new Promise((resolve) => setTimeout(resolve, 200));
            return stream;
          };
          window.addModule = AudioWorklet.prototype.addModule;
          AudioWorklet.prototype.addModule = async () => { throw new Error("no worklet"); };
        }""")
        page.click("#record")
        page.click("#record")
        until(page, "document.getElementById('message').textContent.includes('no worklet')")
        states = "window.streams.map((each) => each.getTracks()[0].readyState).join()"
        assert page.evaluate(states) == "ended"
        page.evaluate("() => { AudioWorklet.prototype.addModule = window.addModule; }")
        page.click("#record")
        until(page, "document.getElementById('record').textContent === 'Stop recording'")
        assert page.evaluate(states) == "ended,live"
        page.wait_for_timeout(200)
        page.click("#record")
        until(page, "document.getElementById('source-name').textContent.includes('recording.wav')")
        assert page.evaluate(states) == "ended,ended"


def test_a_job_that_failed_is_told_once(browser: Browser, serve: Serve, gate: Gate) -> None:
    service = serve(max_wait=10)
    with listening(service) as address, opened(browser, address) as page:
        gate.open.clear()
        files = {"recording": recording()}
        assert httpx.post(f"{address}/v1/jobs", files=files, data={"query": "a"}).status_code == 202
        give(page)
        ask(page, "rain")
        until(page, "document.getElementById('state').textContent.startsWith('Waiting')")
        assert page.is_disabled("#example")
        service.store.get(job_id(page)).queued_at -= 11
        until(page, "document.getElementById('message').textContent.includes('waited more than 10 s')")
        until(page, "location.hash === ''")
        assert page.is_enabled("#example")
