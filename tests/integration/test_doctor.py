"""The doctor at brokers that are not there, have no worker, are of another version or let nobody in; and as a command."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.messages import WIRE_VERSION
from birdie_zmq.protocol.security.keys import new_key
from birdie_zmq.protocol.sockets import Router, wait
from birdie_zmq.tools.doctor import broker
from birdie_zmq.tools.doctor.finding import Finding
from tests.integration.conftest import ROOT, Programs


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> Iterator[str]:
    """A broker with a worker."""
    started = Programs(tmp_path_factory.mktemp("doctor"))
    _, where = started.broker()
    started.worker(where, pages / "broken.py")
    yield where
    started.end()


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_broker_with_a_worker_is_as_it_should_be(endpoint: str) -> None:
    found = by_name(broker.check(endpoint, None, "good"))

    assert {name: one.level for name, one in found.items()} == {"broker": "ok", "workers": "ok", "model": "ok"}
    assert found["workers"].text.startswith("1 ")


def test_a_model_that_no_worker_can_load_is_shown_with_its_traceback(endpoint: str) -> None:
    one = by_name(broker.check(endpoint, None, "raises"))["model"]

    assert one.level == "wrong"
    assert "OSError: no weights at /nowhere" in one.text
    assert "load_weights" in one.detail
    assert "worker's page" in one.cure


def test_a_broker_that_is_not_there_is_started() -> None:
    with Router(parse_endpoint("tcp://127.0.0.1:*")) as router:
        free = router.endpoint

    (one,) = broker.check(free, None, None, answer_s=0.5)

    assert one.level == "wrong"
    assert one.cure.startswith(f"birdie-zmq broker --bind {free}")


def test_what_is_no_endpoint_and_a_key_that_cannot_be_used_are_told_apart(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "client", "alice")
    key.chmod(0o644)

    (endpoint,) = broker.check("localhost:5555", None, None)
    (open_key,) = broker.check("tcp://127.0.0.1:5555", key, None)

    assert (endpoint.level, endpoint.cure) == ("wrong", "birdie-zmq doctor --endpoint tcp://HOST:PORT")
    assert (open_key.level, open_key.cure) == ("warning", "")  # the finding of the key file has the cure
    assert "key file" in open_key.text


def test_a_broker_without_a_worker_gets_one(programs: Programs) -> None:
    _, where = programs.broker()

    answers, workers = broker.check(where, None, "demo")

    assert (answers.level, workers.level) == ("ok", "wrong")
    assert workers.cure == f"birdie-zmq worker --connect {where}"


def test_keys_that_are_wanted_or_refused_are_named(programs: Programs, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "client", "alice")
    worker = new_key(tmp_path / "keys", "worker", "gpu")
    other = new_key(tmp_path / "others", "client", "eve")
    _, where = programs.broker("tcp://127.0.0.1:*", "--keys", str(tmp_path / "keys"))

    let_in = by_name(broker.check(where, key, None))
    (none,) = broker.check(where, None, None, answer_s=3.0)
    (wrong_role,) = broker.check(where, worker, None)
    (unknown,) = broker.check(where, other, None, answer_s=3.0)

    assert let_in["broker"].level == "ok"
    assert none.level == wrong_role.level == unknown.level == "wrong"
    assert "key" in none.text
    assert "worker" in wrong_role.text
    assert "birdie-zmq keys new client NAME" in wrong_role.cure
    assert "another key" in unknown.text or "refuses this key" in unknown.text


def answering(router: Router, frame: bytes, stop: threading.Event) -> None:
    while not stop.is_set():
        wait(router, 0.05)
        while (arrival := router.receive()) is not None:
            router.send(arrival.peer, frame)


REPLIES = {
    "another wire version": (
        [WIRE_VERSION - 1, {"type": "session-opened"}],
        "wire version",
        "pip install 'birdie-zmq==",
    ),
    "no message at all": (["hello"], "no broker of birdie-zmq", "--port or --endpoint"),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_what_answers_otherwise_than_a_broker_of_this_version_is_named(reply: str) -> None:
    message, words, cure = REPLIES[reply]
    stop = threading.Event()
    with Router(parse_endpoint("tcp://127.0.0.1:*")) as router:
        thread = threading.Thread(target=answering, args=(router, msgpack.packb(message), stop))
        thread.start()
        try:
            (one,) = broker.check(router.endpoint, None, None)
        finally:
            stop.set()
            thread.join()

    assert one.level == "wrong"
    assert words in one.text
    assert cure in one.cure


def doctor(*arguments: str, prefix: str = "") -> subprocess.CompletedProcess[str]:
    command = f'{prefix} exec "$@"'
    return subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, "-m", "birdie_zmq", "doctor", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_the_command_lists_all_and_ends_with_1_where_something_is_wrong(pages: Path) -> None:
    done = doctor("--api", str(pages / "broken.py"), "--model-tag", "raises", prefix="ulimit -n 200;")

    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok      python") for line in lines)
    assert any(line.startswith("warning open files") and "200" in line for line in lines)
    assert any(line.startswith("wrong   model") and "no weights at /nowhere" in line for line in lines)
    assert "→ ulimit -n" in done.stdout


def test_a_page_that_is_not_there_is_a_fault_of_the_command_line() -> None:
    done = doctor("--api", "/not/there.py")

    assert done.returncode == 2
    assert "there is no page at /not/there.py" in done.stderr
