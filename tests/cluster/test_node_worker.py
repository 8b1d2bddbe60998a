"""A worker's command as a child of another process: what it wrote last, and that it does not outlive that process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from birdie_zmq.cluster.node_worker import NodeWorker
from tests.integration.conftest import Programs, alive, wait_until

NOBODY = "tcp://127.0.0.1:9"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    started.end()


def test_a_worker_that_cannot_work_says_why() -> None:
    worker = NodeWorker(1, ["--connect", "nowhere", "--lifeline"], {})
    worker.start()

    status, last_words = worker.wait()

    assert status == 2
    assert last_words.startswith("birdie-zmq worker: error: 'nowhere' is no endpoint")


def test_a_worker_that_is_told_to_stop_ends_in_good_order(programs: Programs) -> None:
    broker, endpoint = programs.broker()
    worker = NodeWorker(1, ["--connect", endpoint, "--built-in", "--lifeline", "--quiet"], {})
    process_id = worker.start()
    broker.wait_for(f"worker {process_id} on .* is ready")

    worker.stop(20.0)

    assert worker.wait()[0] == 0
    broker.wait_for("it said goodbye")


def test_a_worker_ends_with_the_process_that_started_it_kill_9_included(programs: Programs) -> None:
    code = (
        "from birdie_zmq.cluster.node_worker import NodeWorker\n"
        f"worker = NodeWorker(1, ['--connect', '{NOBODY}', '--built-in', '--lifeline'], {{}})\n"
        "print('started', worker.start())\n"
        "print('ended', worker.wait())\n"
    )
    parent = programs.start("-c", code)
    child = psutil.Process(int(parent.wait_for(r"started (\d+)")[1]))
    parent.wait_for("worker for tcp://")

    parent.process.kill()

    wait_until(lambda: not alive([child]), "the worker's end")
