"""The status page in headless Chromium, with hostile names of peers."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.broker.status.http_server import StatusServer
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ModelSpec
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_WORKER,
    WORKER,
    BrokerHarness,
    answer,
    crash,
    register,
    submit,
)

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options)
    yield driver
    driver.quit()


@pytest.fixture
def harness() -> BrokerHarness:
    """A broker with two workers, one of them with a hostile name, a client, and a crash."""
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    registration = m.RegisterWorker(package_version="1", engine=HOSTILE, host=HOSTILE, process_id=1, capacity=1)
    harness.send(WORKER, register())
    harness.send(CLIENT, submit(1, ModelSpec(tag="demo"), "xyz"), submit(2, ModelSpec(tag=HOSTILE), "xy"))
    harness.send(WORKER, answer(harness.lease(), 0))
    harness.send(OTHER_WORKER, registration)
    harness.send(OTHER_WORKER, crash(harness.lease(OTHER_WORKER)))
    harness.send(WORKER, m.Heartbeat(phase="compiling 4 x 128", model=ModelSpec(tag="demo")))
    harness.advance(2.0)
    return harness


@pytest.fixture
def page(harness: BrokerHarness, driver: Any) -> Iterator[StatusServer]:
    with StatusServer(0, "tcp://127.0.0.1:5555") as server:
        _update_page(server, harness)
        driver.get_log("browser")
        driver.get(server.address)
        _until(lambda: _text(driver, "#pulse") == "live")
        yield server


def _update_page(server: StatusServer, harness: BrokerHarness) -> None:
    """Update the page from the harness, with a snapshot whose time is translated to the present."""
    offset_s = time.monotonic() - harness.now
    server.update_status(harness.broker, harness.now)
    assert server._status is not None
    server._status = dataclasses.replace(server._status, at=harness.now + offset_s)


def _text(driver: Any, selector: str) -> str:
    return str(driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "the page did not reach the expected state"
        time.sleep(0.05)


def test_the_page_shows_workers_models_clients_and_crashes(page: StatusServer, driver: Any) -> None:
    assert "compiling 4 x 128" in _text(driver, "#workers")
    assert "here" in _text(driver, "#workers")
    assert "demo" in _text(driver, "#models")
    assert "session 1" in _text(driver, "#clients")
    assert "model-process-died" in _text(driver, "#problems")
    assert "Requests done\n1" in _text(driver, "#figures")


def test_names_of_peers_are_shown_as_text(page: StatusServer, driver: Any) -> None:
    for selector in ("#workers", "#models", "#problems"):
        assert HOSTILE[:60] in _text(driver, selector)
    assert driver.execute_script("return document.querySelectorAll('img, main script').length") == 0
    assert driver.title == "birdie-zmq broker"


def test_nothing_is_loaded_from_elsewhere_and_the_console_is_empty(page: StatusServer, driver: Any) -> None:
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded
    assert {name.removeprefix(page.address).partition("?")[0] for name in loaded} == {"status.json"}
    assert driver.get_log("browser") == []


def test_the_content_security_policy_blocks_injected_scripts(page: StatusServer, driver: Any) -> None:
    driver.execute_script(
        "const made = document.createElement('script'); made.textContent = 'window.taken = 1'; document.body.append(made)"
    )
    assert driver.execute_script("return window.taken ?? null") is None


def test_the_page_follows_the_broker_and_says_when_it_does_not_answer(
    page: StatusServer, driver: Any, harness: BrokerHarness
) -> None:
    harness.send(WORKER, m.CloseWorker())
    _update_page(page, harness)
    _until(lambda: "here" not in _text(driver, "#workers"))
    page._status = None
    _until(lambda: "has not answered" in _text(driver, "#alarm"))
    assert driver.title.startswith("(!)")
    _update_page(page, harness)
    _until(lambda: _text(driver, "#pulse") == "live")
    assert _text(driver, "#alarm") == ""


def test_a_stalled_broker_is_reported(page: StatusServer, driver: Any) -> None:
    _until(lambda: "has been stalled" in _text(driver, "#alarm"))


def test_the_plot_can_be_selected_with_the_keyboard(page: StatusServer, driver: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    first = driver.find_element("css selector", "input[value=requests]")
    first.send_keys(Keys.ARROW_RIGHT)
    assert driver.find_element("css selector", "input[value=tokens]").is_selected()
    _until(lambda: "tokens" in _text(driver, "#plot-summary"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_the_screen(page: StatusServer, driver: Any, scheme: str, width: int) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        _until(lambda: driver.execute_script("return innerWidth") == width)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        color = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert color == {"light": "rgb(245, 246, 244)", "dark": "rgb(18, 22, 20)"}[scheme]
        if folder := os.environ.get("BIRDIE_SCREENSHOTS"):
            screenshot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (Path(folder) / f"{scheme}-{width}.png").write_bytes(base64.b64decode(screenshot["data"]))
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [1280, 390])
def test_the_time_labels_of_the_plot_do_not_overlap(page: StatusServer, driver: Any, width: int) -> None:
    metrics = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page._status is not None
        page._status = dataclasses.replace(page._status, uptime_s=258.0)
        _until(
            lambda: "4 min 18 s ago" in str(driver.execute_script("return document.querySelector('#plot').textContent"))
        )
        boxes = driver.execute_script(
            "return [...document.querySelectorAll('#plot text')].filter(e => /ago|now/.test(e.textContent))"
            ".map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])"
        )
        assert len(boxes) >= 2
        for (_, right), (left, _) in itertools.pairwise(boxes):
            assert left - right > 10
        assert boxes[-1][1] <= width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
