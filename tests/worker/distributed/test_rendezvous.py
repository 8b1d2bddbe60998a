"""What is said while the processes of a group wait for each other."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from birdie_zmq.engine.distributed.process_group import RankInfo
from birdie_zmq.errors import GroupIncomplete
from birdie_zmq.worker.distributed.rendezvous import Rendezvous, connected, count_connections, incomplete, waiting

PLACE = RankInfo(3, 0, "gpu0:1234", 300.0)

TABLE = [
    "0: 0100007F:04D2 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1",  # listens
    "1: 0100007F:04D2 0200007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 2",
    "2: 0200007F:9C40 0100007F:04D2 01 00000000:00000000 00:00000000 00000000 0 0 3",  # the other end
    "3: 0100007F:04D2 0300007F:9C41 06 00000000:00000000 00:00000000 00000000 0 0 4",  # over
    "4: 0000000000000000FFFF00000100007F:04D2 0000000000000000FFFF00000100007F:9C42 01 0:0 0:0 0 0 0 5",
]


def test_connections_are_counted_at_the_end_that_listens() -> None:
    assert count_connections(TABLE, 1234) == 2
    assert count_connections(TABLE, 1235) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists connections")
def test_the_system_says_who_is_connected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connected(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            other, _ = server.accept()
            with other:
                assert connected(port) == 1


def test_a_person_hears_who_is_missing_and_what_to_do() -> None:
    assert waiting(PLACE, "gpu0:1234", 2, 290.4) == (
        "waiting for all 3 processes of the group at gpu0:1234 (2 are there); 290 s more, then the run gets an error"
    )
    assert "have come to gpu0:1234 within 300 s; start a worker on each host" in incomplete(PLACE, "gpu0:1234", None)


def test_the_wait_ends_with_an_error_and_is_told_of_before() -> None:
    said: list[str] = []
    errors: list[GroupIncomplete] = []
    over = threading.Event()

    def give_up(error: GroupIncomplete) -> None:
        errors.append(error)
        over.set()

    with Rendezvous(RankInfo(2, 0, timeout_s=0.3), "127.0.0.1:1", said.append, give_up):
        assert over.wait(30)
    assert len(said) >= 1
    assert "not all 2 processes" in errors[0].message


def test_nothing_is_said_of_a_meeting_that_is_over() -> None:
    said: list[str] = []
    with Rendezvous(RankInfo(2, 0, timeout_s=300.0), "127.0.0.1:1", said.append, lambda error: said.append(str(error))):
        pass
    assert said == []
