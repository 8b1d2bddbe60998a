"""A worker's command as a child process: its last line, and its end with the parent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from birdie_zmq.cluster.node_worker import NodeWorker
from tests.integration.conftest import Programs, alive, wait_until

UNUSED_ENDPOINT = "tcp://127.0.0.1:9"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    started.end()


def test_worker_with_a_usage_error_returns_its_last_line() -> None:
    worker = NodeWorker(1, ["--connect", "nowhere", "--lifeline"], {})
    worker.start()

    status, last_line = worker.wait()

    assert status == 2
    assert last_line.startswith("birdie-zmq worker: error: 'nowhere' is not an endpoint")


def test_stopped_worker_deregisters_and_exits_with_status_0(programs: Programs) -> None:
    broker, endpoint = programs.broker()
    worker = NodeWorker(1, ["--connect", endpoint, "--built-in", "--lifeline", "--quiet"], {})
    process_id = worker.start()
    broker.wait_for(f"worker {process_id} on .* is ready")

    worker.stop(20.0)

    assert worker.wait()[0] == 0
    broker.wait_for("it shut down")


def test_worker_ends_when_its_parent_is_killed(programs: Programs) -> None:
    code = (
        "from birdie_zmq.cluster.node_worker import NodeWorker\n"
        f"worker = NodeWorker(1, ['--connect', '{UNUSED_ENDPOINT}', '--built-in', '--lifeline'], {{}})\n"
        "print('started', worker.start())\n"
        "print('ended', worker.wait())\n"
    )
    parent = programs.start("-c", code)
    child = psutil.Process(int(parent.wait_for(r"started (\d+)")[1]))
    parent.wait_for("worker for tcp://")

    parent.process.kill()

    wait_until(lambda: not alive([child]), "the worker's end")
