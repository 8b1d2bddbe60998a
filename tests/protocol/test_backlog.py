"""The backlog between a broker and a peer is limited in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.router import MAX_UNREAD_BY_BROKER, MAX_UNREAD_BY_PEER, Router
from birdie_zmq.protocol.transport import wait

FRAME = bytes(1_000)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    with Router(parse_endpoint(f"ipc://{tmp_path}/broker")) as router:
        yield router


@pytest.fixture
def peer(router: Router) -> Iterator[zmq.Socket[bytes]]:
    """Connect a peer that queues only one message itself, so that all others are in transit or in the broker."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.sndhwm = peer.rcvhwm = 1
        peer.linger = 0
        peer.connect(router.endpoint)
        peer.send(FRAME)
        yield peer


def test_the_broker_stops_reading_a_flooding_peer(router: Router, peer: zmq.Socket[bytes]) -> None:
    sent = 0
    while sent < 50 * MAX_UNREAD_BY_BROKER and peer.poll(500, zmq.POLLOUT):
        peer.send(FRAME, flags=zmq.DONTWAIT)
        sent += 1
    assert sent < 10 * MAX_UNREAD_BY_BROKER, "more than fits into the broker's queue and the system's buffers"

    read = 0
    while read <= sent:
        wait(router, 5.0)
        while router.receive() is not None:
            read += 1
    assert read == sent + 1


def test_a_peer_that_does_not_read_is_considered_gone(router: Router, peer: zmq.Socket[bytes]) -> None:
    wait(router, 5.0)
    received = router.receive()
    assert received is not None
    sent = 0
    while sent < 10 * MAX_UNREAD_BY_PEER and router.send(received.peer, FRAME):
        sent += 1
    assert MAX_UNREAD_BY_PEER <= sent < 2 * MAX_UNREAD_BY_PEER


def test_the_router_sends_no_zmtp_heartbeats(router: Router) -> None:
    """libzmq aborts if a heartbeat is due on a broken connection that is not read; tests/fuzz/test_broker.py found this."""
    assert router._socket.heartbeat_ivl == 0
    assert router._socket.tcp_keepalive == 1
