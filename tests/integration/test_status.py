"""The status page beside a real run: what it says while requests are answered, and that names of peers stay text."""

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
from lm_eval.api.instance import Instance
from prometheus_client.parser import text_string_to_metric_families

from birdie_zmq.broker.status.snapshot import Status
from harness_model import BirdieZMQ
from tests.integration.conftest import ROOT, Programs, wait_until

SECRET = "the-launch-code-is-73194"


def read(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
        body: bytes = answer.read()
        return body


def look(address: str) -> Status:
    return msgspec.json.decode(read(address, "status.json"), type=Status)


def samples(address: str) -> dict[str, float]:
    families = text_string_to_metric_families(read(address, "metrics").decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_run_is_seen_from_its_first_request_to_its_last(programs: Programs) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    address = broker.wait_for(r"status page at (\S+)")[1]
    programs.worker(endpoint, ROOT / "api.py")
    wait_until(lambda: bool(look(address).workers), "the worker on the page")
    worker = look(address).workers[0]
    assert (worker.host, worker.engine, worker.model) == (socket.gethostname(), "jax", None)

    requests = [
        Instance("loglikelihood", {}, (f"{SECRET} {number}: the cat sat on the", " mat"), number)
        for number in range(600)
    ]
    seen: list[Status] = []
    with BirdieZMQ(model_tag="demo", endpoint=endpoint) as lm:
        running = threading.Thread(target=lm.loglikelihood, args=(requests,), kwargs={"disable_tqdm": True})
        running.start()
        while running.is_alive():
            body = read(address, "status.json")
            assert SECRET.encode() not in body
            assert SECRET.encode() not in read(address, "metrics")
            seen.append(msgspec.json.decode(body, type=Status))
        assert look(address).clients_connected == 1
        assert any(status.batches_leased for status in seen)
        assert any(worker.phase.startswith(("compiling", "running")) for status in seen for worker in status.workers)
        # What was computed is told each second, what was answered at once.
        wait_until(lambda: samples(address)["birdie_zmq_tokens_computed_total"] > 0, "tokens in the metrics")
        wait_until(lambda: samples(address)["birdie_zmq_requests_answered_total"] >= 600, "answers in the metrics")
    wait_until(lambda: look(address).clients_connected == 0, "the end of the session")
    wait_until(lambda: sum(look(address).throughput.requests) > 0, "the throughput")
    status = look(address)
    assert status.totals.requests_failed == status.totals.losses == 0
    assert status.workers[0].model == "demo"
    assert status.workers[0].programs > 0
    bound = {
        str(connection.laddr.ip)
        for connection in psutil.Process(broker.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert bound == {"127.0.0.1"}


def test_without_the_option_there_is_no_page(programs: Programs) -> None:
    broker, endpoint = programs.broker()
    ports = {
        connection.laddr.port
        for connection in psutil.Process(broker.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == {int(endpoint.rpartition(":")[2])}


def test_a_broker_that_is_told_to_stop_does_not_wait_for_readers(programs: Programs) -> None:
    broker, _ = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    address = broker.wait_for(r"status page at (\S+)")[1]
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    with socket.create_connection((host, int(port))):
        assert broker.stop() == 0
    assert "Traceback" not in broker.output


_TAKE_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Ctrl-C reaches who has the terminal as its own. Not done in a fork of the tests, where JAX may have threads."""


class Terminal:
    """``birdie-zmq status`` on a pseudo-terminal of its own, and all that it has drawn there."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, 160))
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_THE_TERMINAL, sys.executable, "-m", "birdie_zmq", "status", *arguments],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        self._theirs = theirs
        self.drawn = ""

    def shows(self, text: str) -> bool:
        """Whether a text has been drawn by now."""
        while select.select([self._ours], [], [], 0)[0]:
            self.drawn += os.read(self._ours, 65_536).decode()
        return text in self.drawn

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def after(self) -> list[object]:
        return termios.tcgetattr(self._theirs)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._theirs)
        os.close(self._ours)


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


def test_the_terminal_follows_the_broker_until_ctrl_c_and_is_left_clean(
    programs: Programs, terminals: Callable[..., Terminal]
) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    terminal = terminals("--port", broker.wait_for(r"status page at (\S+)")[1])
    wait_until(lambda: terminal.shows("no worker is connected"), "the state without a worker")
    assert ENTER_SCREEN in terminal.drawn
    assert HIDE_CURSOR in terminal.drawn
    assert "no model" not in terminal.drawn

    programs.worker(endpoint, ROOT / "api.py")
    wait_until(lambda: terminal.shows("no model"), "the worker in the terminal")
    assert terminal.process.poll() is None

    terminal.press(b"\x03")

    assert terminal.process.wait(30) == 0
    assert terminal.shows(LEAVE_SCREEN)
    assert terminal.drawn.rindex(SHOW_CURSOR) > terminal.drawn.rindex(HIDE_CURSOR)
    assert terminal.drawn.rindex(LEAVE_SCREEN) > terminal.drawn.rindex(ENTER_SCREEN)
    assert "Traceback" not in terminal.drawn
    assert terminal.after() == terminal.before


def test_the_terminal_is_left_clean_when_the_broker_ends(
    programs: Programs, terminals: Callable[..., Terminal]
) -> None:
    broker, _ = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    terminal = terminals("--port", broker.wait_for(r"status page at (\S+)")[1])
    wait_until(lambda: terminal.shows("no worker is connected"), "the state without a worker")

    broker.stop()

    assert terminal.process.wait(30) == 2
    assert terminal.shows("no status page answers")
    # What is said stands on the person's own screen, where it stays.
    assert terminal.drawn.rindex("no status page answers") > terminal.drawn.rindex(LEAVE_SCREEN)
    assert "Traceback" not in terminal.drawn
