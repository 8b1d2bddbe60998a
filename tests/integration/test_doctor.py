"""The doctor with brokers that are missing, have no worker, have another version or require keys; and its command."""

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
from birdie_zmq.protocol.router import Router
from birdie_zmq.protocol.security.keys import new_key
from birdie_zmq.protocol.transport import wait
from birdie_zmq.tools.doctor import broker
from birdie_zmq.tools.doctor.finding import Finding
from tests.integration.conftest import ROOT, Programs


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[str]:
    """Start a broker with a worker and return its endpoint."""
    started = Programs(tmp_path_factory.mktemp("doctor"))
    _, broker_endpoint = started.broker()
    started.worker(broker_endpoint, model_files / "broken.py")
    yield broker_endpoint
    started.end()


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_broker_with_a_worker_passes_all_checks(endpoint: str) -> None:
    found = by_name(broker.check(endpoint, None, "good"))

    assert {name: finding.level for name, finding in found.items()} == {"broker": "ok", "workers": "ok", "model": "ok"}
    assert found["workers"].text.startswith("1 ")


def test_model_load_failure_is_shown_with_its_traceback(endpoint: str) -> None:
    finding = by_name(broker.check(endpoint, None, "raises"))["model"]

    assert finding.level == "wrong"
    assert "OSError: no weights at /nowhere" in finding.text
    assert "load_weights" in finding.detail
    assert "worker's api.py" in finding.fix


def test_missing_broker_finding_has_the_start_command() -> None:
    with Router(parse_endpoint("tcp://127.0.0.1:*")) as router:
        unused_endpoint = router.endpoint

    (finding,) = broker.check(unused_endpoint, None, None, answer_s=0.5)

    assert finding.level == "wrong"
    assert finding.fix.startswith(f"birdie-zmq broker --bind {unused_endpoint}")


def test_invalid_endpoint_and_unusable_key_are_distinguished(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "client", "alice")
    key.chmod(0o644)

    (invalid_endpoint,) = broker.check("localhost:5555", None, None)
    (open_key,) = broker.check("tcp://127.0.0.1:5555", key, None)

    assert (invalid_endpoint.level, invalid_endpoint.fix) == ("wrong", "birdie-zmq doctor --endpoint tcp://HOST:PORT")
    assert (open_key.level, open_key.fix) == ("warning", "")  # the finding of the key file has the fix
    assert "key file" in open_key.text


def test_missing_worker_finding_has_the_start_command(programs: Programs) -> None:
    _, endpoint = programs.broker()

    broker_finding, workers = broker.check(endpoint, None, "demo")

    assert (broker_finding.level, workers.level) == ("ok", "wrong")
    assert workers.fix == f"birdie-zmq worker --connect {endpoint}"


def test_missing_or_rejected_keys_are_reported(programs: Programs, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "client", "alice")
    worker = new_key(tmp_path / "keys", "worker", "gpu")
    other = new_key(tmp_path / "others", "client", "eve")
    _, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(tmp_path / "keys"))

    allowed = by_name(broker.check(endpoint, key, None))
    (no_key,) = broker.check(endpoint, None, None, answer_s=3.0)
    (wrong_role,) = broker.check(endpoint, worker, None)
    (unknown_key,) = broker.check(endpoint, other, None, answer_s=3.0)

    assert allowed["broker"].level == "ok"
    assert no_key.level == wrong_role.level == unknown_key.level == "wrong"
    assert "key" in no_key.text
    assert "worker" in wrong_role.text
    assert "birdie-zmq keys new client NAME" in wrong_role.fix
    assert "another key" in unknown_key.text or "refuses the key" in unknown_key.text


def reply_to_all(router: Router, frame: bytes, stop: threading.Event) -> None:
    while not stop.is_set():
        wait(router, 0.05)
        while (incoming := router.receive()) is not None:
            router.send(incoming.peer, frame)


REPLIES = {
    "another wire version": (
        [WIRE_VERSION - 1, {"type": "session-opened"}],
        "wire version",
        "pip install 'birdie-zmq==",
    ),
    "not a message": (["hello"], "not a birdie-zmq broker", "--port or --endpoint"),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_incompatible_broker_reply_is_reported(reply: str) -> None:
    message, words, fix = REPLIES[reply]
    stop = threading.Event()
    with Router(parse_endpoint("tcp://127.0.0.1:*")) as router:
        thread = threading.Thread(target=reply_to_all, args=(router, msgpack.packb(message), stop))
        thread.start()
        try:
            (finding,) = broker.check(router.endpoint, None, None)
        finally:
            stop.set()
            thread.join()

    assert finding.level == "wrong"
    assert words in finding.text
    assert fix in finding.fix


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


def test_command_lists_all_findings_and_exits_with_1_on_failure(model_files: Path) -> None:
    done = doctor("--api", str(model_files / "broken.py"), "--model-tag", "raises", prefix="ulimit -n 200;")

    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok      python") for line in lines)
    assert any(line.startswith("warning open files") and "200" in line for line in lines)
    assert any(line.startswith("wrong   model") and "no weights at /nowhere" in line for line in lines)
    assert "→ ulimit -n" in done.stdout


def test_missing_model_file_is_a_command_line_error() -> None:
    done = doctor("--api", "/not/there.py")

    assert done.returncode == 2
    assert "there is no file /not/there.py" in done.stderr
