"""The status page in headless Chromium: what it shows, in whatever words peers name themselves."""

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
from tests.broker.harness import CLIENT, GREETING, OTHER_WORKER, WORKER, Room, answer, crash, register, submit

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
def room() -> Room:
    """Two workers, one of them with a hostile name, a client, and a loss."""
    room = Room()
    room.says(CLIENT, GREETING)
    hello = m.RegisterWorker(package_version="1", engine=HOSTILE, host=HOSTILE, process_id=1, capacity=1)
    room.says(WORKER, register())
    room.says(CLIENT, submit(1, ModelSpec(tag="demo"), "xyz"), submit(2, ModelSpec(tag=HOSTILE), "xy"))
    room.says(WORKER, answer(room.lease(), 0))
    room.says(OTHER_WORKER, hello)
    room.says(OTHER_WORKER, crash(room.lease(OTHER_WORKER)))
    room.says(WORKER, m.Heartbeat(phase="compiling 4 x 128", model=ModelSpec(tag="demo")))
    room.passes(2.0)
    return room


@pytest.fixture
def page(room: Room, driver: Any) -> Iterator[StatusServer]:
    with StatusServer(0, "tcp://127.0.0.1:5555") as server:
        _show(server, room)
        driver.get_log("browser")
        driver.get(server.address)
        _until(lambda: _text(driver, "#pulse") == "live")
        yield server


def _show(server: StatusServer, room: Room) -> None:
    """A snapshot at the room's time, which is taken for one of this moment."""
    ahead = time.monotonic() - room.now
    server.look(room.broker, room.now)
    assert server._status is not None
    server._status = dataclasses.replace(server._status, at=room.now + ahead)


def _text(driver: Any, selector: str) -> str:
    return str(driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def _until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "the page did not come to it"
        time.sleep(0.05)


def test_the_page_shows_workers_models_clients_and_losses(page: StatusServer, driver: Any) -> None:
    assert "compiling 4 x 128" in _text(driver, "#workers")
    assert "here" in _text(driver, "#workers")
    assert "demo" in _text(driver, "#models")
    assert "session 1" in _text(driver, "#clients")
    assert "model-process-died" in _text(driver, "#wrong")
    assert "Requests done\n1" in _text(driver, "#figures")


def test_names_of_peers_are_text_wherever_they_are_shown(page: StatusServer, driver: Any) -> None:
    for place in ("#workers", "#models", "#wrong"):
        assert HOSTILE[:60] in _text(driver, place)
    assert driver.execute_script("return document.querySelectorAll('img, main script').length") == 0
    assert driver.title == "birdie-zmq broker"


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_wrong_in_the_console(page: StatusServer, driver: Any) -> None:
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded
    assert {name.removeprefix(page.address).partition("?")[0] for name in loaded} == {"status.json"}
    assert driver.get_log("browser") == []


def test_the_policy_stops_a_script_that_is_not_the_pages(page: StatusServer, driver: Any) -> None:
    driver.execute_script(
        "const made = document.createElement('script'); made.textContent = 'window.taken = 1'; document.body.append(made)"
    )
    assert driver.execute_script("return window.taken ?? null") is None


def test_the_page_follows_the_broker_and_says_when_it_is_gone(page: StatusServer, driver: Any, room: Room) -> None:
    room.says(WORKER, m.CloseWorker())
    _show(page, room)
    _until(lambda: "here" not in _text(driver, "#workers"))
    page._status = None
    _until(lambda: "has not answered" in _text(driver, "#alarm"))
    assert driver.title.startswith("(!)")
    _show(page, room)
    _until(lambda: _text(driver, "#pulse") == "live")
    assert _text(driver, "#alarm") == ""


def test_a_loop_that_stands_still_is_said(page: StatusServer, driver: Any) -> None:
    _until(lambda: "has stood still" in _text(driver, "#alarm"))


def test_the_plot_is_chosen_with_the_keyboard(page: StatusServer, driver: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    first = driver.find_element("css selector", "input[value=requests]")
    first.send_keys(Keys.ARROW_RIGHT)
    assert driver.find_element("css selector", "input[value=tokens]").is_selected()
    _until(lambda: "tokens" in _text(driver, "#said"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen(page: StatusServer, driver: Any, scheme: str, width: int) -> None:
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
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (Path(folder) / f"{scheme}-{width}.png").write_bytes(base64.b64decode(shot["data"]))
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [1280, 390])
def test_the_times_below_the_plot_do_not_touch(page: StatusServer, driver: Any, width: int) -> None:
    metrics = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page._status is not None
        page._status = dataclasses.replace(page._status, uptime_s=258.0)
        _until(
            lambda: "4 min 18 s ago" in str(driver.execute_script("return document.querySelector('#plot').textContent"))
        )
        places = driver.execute_script(
            "return [...document.querySelectorAll('#plot text')].filter(e => /ago|now/.test(e.textContent))"
            ".map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])"
        )
        assert len(places) >= 2
        for (_, right), (left, _) in itertools.pairwise(places):
            assert left - right > 10
        assert places[-1][1] <= width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
