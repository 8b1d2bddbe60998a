"""The rendezvous of a process group: reports, timeout, and the count of connections."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from birdie_zmq.errors import ProcessGroupIncomplete
from birdie_zmq.types import RankInfo
from birdie_zmq.worker.distributed.rendezvous import (
    Rendezvous,
    connected_processes,
    count_connections,
    timeout_text,
    waiting_text,
)

RANK = RankInfo(3, 0, "gpu0:1234", 300.0)

TABLE = [
    "0: 0100007F:04D2 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1",  # listens
    "1: 0100007F:04D2 0200007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 2",
    "2: 0200007F:9C40 0100007F:04D2 01 00000000:00000000 00:00000000 00000000 0 0 3",  # the other end
    "3: 0100007F:04D2 0300007F:9C41 06 00000000:00000000 00:00000000 00000000 0 0 4",  # closed
    "4: 0000000000000000FFFF00000100007F:04D2 0000000000000000FFFF00000100007F:9C42 01 0:0 0:0 0 0 0 5",
]


def test_connections_are_counted_at_the_listening_end() -> None:
    assert count_connections(TABLE, 1234) == 2
    assert count_connections(TABLE, 1235) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists connections")
def test_connected_processes_are_counted_from_the_system_tables() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connected_processes(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            other, _ = server.accept()
            with other:
                assert connected_processes(port) == 1


def test_texts_say_how_many_are_connected_and_what_to_do() -> None:
    assert waiting_text(RANK, "gpu0:1234", 2, 290.4) == (
        "waiting for all 3 processes of the group at gpu0:1234 (2 connected); the run fails in 290 s"
    )
    assert "connected to gpu0:1234 within 300 s; start a worker on each host" in timeout_text(RANK, "gpu0:1234", None)


def test_waiting_is_reported_and_ends_with_an_error() -> None:
    reports: list[str] = []
    errors: list[ProcessGroupIncomplete] = []
    failed = threading.Event()

    def fail(error: ProcessGroupIncomplete) -> None:
        errors.append(error)
        failed.set()

    with Rendezvous(RankInfo(2, 0, timeout_s=0.3), "127.0.0.1:1", reports.append, fail):
        assert failed.wait(30)
    assert len(reports) >= 1
    assert "not all 2 processes" in errors[0].message


def test_completed_rendezvous_reports_nothing() -> None:
    reports: list[str] = []
    with Rendezvous(
        RankInfo(2, 0, timeout_s=300.0), "127.0.0.1:1", reports.append, lambda error: reports.append(str(error))
    ):
        pass
    assert reports == []
