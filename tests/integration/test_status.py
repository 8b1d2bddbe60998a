"""The status page and the terminal view during real runs, and their behaviour at the end of a broker."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import socket
import subprocess
import sys
import termios
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from birdie_zmq.broker.status.snapshot import Status
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import ROOT, Programs, wait_until

SECRET = "the-launch-code-is-73194"


def fetch(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
        body: bytes = answer.read()
        return body


def fetch_status(address: str) -> Status:
    return msgspec.json.decode(fetch(address, "status.json"), type=Status)


def fetch_metrics(address: str) -> dict[str, float]:
    families = text_string_to_metric_families(fetch(address, "metrics").decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_status_page_and_metrics_follow_a_run(programs: Programs) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    address = broker.wait_for(r"status page at (\S+)")[1]
    programs.worker(endpoint, ROOT / "api.py")
    wait_until(lambda: bool(fetch_status(address).workers), "the worker on the status page")
    worker = fetch_status(address).workers[0]
    assert (worker.host, worker.engine, worker.model) == (socket.gethostname(), "jax", None)

    requests = [
        instance("loglikelihood", (f"{SECRET} {number}: the cat sat on the", " mat"), number) for number in range(600)
    ]
    observed: list[Status] = []
    with BirdieZMQ(model_tag="demo", endpoint=endpoint) as lm:
        running = threading.Thread(target=lm.loglikelihood, args=(requests,), kwargs={"disable_tqdm": True})
        running.start()
        while running.is_alive():
            body = fetch(address, "status.json")
            assert SECRET.encode() not in body
            assert SECRET.encode() not in fetch(address, "metrics")
            observed.append(msgspec.json.decode(body, type=Status))
        assert fetch_status(address).clients_connected == 1
        assert any(status.batches_leased for status in observed)
        assert any(
            worker.phase.startswith(("compiling", "running")) for status in observed for worker in status.workers
        )
        # Computed tokens are reported each second, answered requests at once.
        wait_until(lambda: fetch_metrics(address)["birdie_zmq_tokens_computed_total"] > 0, "tokens in the metrics")
        wait_until(
            lambda: fetch_metrics(address)["birdie_zmq_requests_answered_total"] >= 600, "answers in the metrics"
        )
    wait_until(lambda: fetch_status(address).clients_connected == 0, "the end of the session")
    wait_until(lambda: sum(fetch_status(address).throughput.requests) > 0, "the throughput")
    status = fetch_status(address)
    assert status.totals.requests_failed == status.totals.retries == 0
    assert status.workers[0].model == "demo"
    assert status.workers[0].executables > 0
    bound = {
        str(connection.laddr.ip)
        for connection in psutil.Process(broker.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert bound == {"127.0.0.1"}


def test_no_status_port_is_open_without_the_option(programs: Programs) -> None:
    broker, endpoint = programs.broker()
    ports = {
        connection.laddr.port
        for connection in psutil.Process(broker.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == {int(endpoint.rpartition(":")[2])}


def test_broker_stops_with_an_open_status_connection(programs: Programs) -> None:
    broker, _ = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    address = broker.wait_for(r"status page at (\S+)")[1]
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    with socket.create_connection((host, int(port))):
        assert broker.stop() == 0
    assert "Traceback" not in broker.output


_ACQUIRE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the pseudo-terminal the controlling terminal, so that Ctrl-C reaches the command.

Not done in a ``preexec_fn``: the tests may have threads of JAX, which make a fork unsafe.
"""


class Terminal:
    """``birdie-zmq status`` on its own pseudo-terminal, and its output so far."""

    def __init__(self, *arguments: str) -> None:
        self._controller, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (50, 160))
        self.initial_attributes = termios.tcgetattr(terminal)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ACQUIRE_TERMINAL, sys.executable, "-m", "birdie_zmq", "status", *arguments],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        self._terminal = terminal
        self.output = ""

    def shows(self, text: str) -> bool:
        """Return whether the output so far contains a text."""
        while select.select([self._controller], [], [], 0)[0]:
            self.output += os.read(self._controller, 65_536).decode()
        return text in self.output

    def press(self, keys: bytes) -> None:
        os.write(self._controller, keys)

    def attributes(self) -> list[object]:
        return termios.tcgetattr(self._terminal)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._terminal)
        os.close(self._controller)


@pytest.fixture
def terminals() -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Terminal:
            terminal = Terminal(*arguments)
            stack.callback(terminal.end)
            return terminal

        yield start


ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def test_terminal_view_is_live_until_ctrl_c_and_restores_the_terminal(
    programs: Programs, terminals: Callable[..., Terminal]
) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    terminal = terminals("--port", broker.wait_for(r"status page at (\S+)")[1])
    wait_until(lambda: terminal.shows("no worker is connected"), "the state without a worker")
    assert ENTER_SCREEN in terminal.output
    assert HIDE_CURSOR in terminal.output
    assert "no model" not in terminal.output

    programs.worker(endpoint, ROOT / "api.py")
    wait_until(lambda: terminal.shows("no model"), "the worker in the terminal")
    assert terminal.process.poll() is None

    terminal.press(b"\x03")

    assert terminal.process.wait(30) == 0
    assert terminal.shows(LEAVE_SCREEN)
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)
    assert terminal.output.rindex(LEAVE_SCREEN) > terminal.output.rindex(ENTER_SCREEN)
    assert "Traceback" not in terminal.output
    assert terminal.attributes() == terminal.initial_attributes


def test_terminal_is_restored_when_the_broker_exits(programs: Programs, terminals: Callable[..., Terminal]) -> None:
    broker, _ = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    terminal = terminals("--port", broker.wait_for(r"status page at (\S+)")[1])
    wait_until(lambda: terminal.shows("no worker is connected"), "the state without a worker")

    broker.stop()

    assert terminal.process.wait(30) == 2
    assert terminal.shows("no status page answers")
    # The error is printed after the alternate screen is left, so that it stays visible.
    assert terminal.output.rindex("no status page answers") > terminal.output.rindex(LEAVE_SCREEN)
    assert "Traceback" not in terminal.output
