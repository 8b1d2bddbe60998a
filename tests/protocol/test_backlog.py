"""What waits between a broker and a peer is bounded in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.sockets import MAX_UNREAD_BY_BROKER, MAX_UNREAD_BY_PEER, Router, wait

FRAME = bytes(1_000)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    with Router(parse_endpoint(f"ipc://{tmp_path}/broker")) as router:
        yield router


@pytest.fixture
def peer(router: Router) -> Iterator[zmq.Socket[bytes]]:
    """A peer that holds one message itself, so that all others are on their way or in the broker."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.sndhwm = peer.rcvhwm = 1
        peer.linger = 0
        peer.connect(router.endpoint)
        peer.send(FRAME)
        yield peer


def test_a_peer_is_not_read_for_ever(router: Router, peer: zmq.Socket[bytes]) -> None:
    sent = 0
    while sent < 50 * MAX_UNREAD_BY_BROKER and peer.poll(500, zmq.POLLOUT):
        peer.send(FRAME, flags=zmq.DONTWAIT)
        sent += 1
    assert sent < 10 * MAX_UNREAD_BY_BROKER, "more than waits in the broker and in the buffers of the system"

    read = 0
    while read <= sent:
        wait(router, 5.0)
        while router.receive() is not None:
            read += 1
    assert read == sent + 1


def test_whoever_does_not_read_is_gone(router: Router, peer: zmq.Socket[bytes]) -> None:
    wait(router, 5.0)
    arrival = router.receive()
    assert arrival is not None
    sent = 0
    while sent < 10 * MAX_UNREAD_BY_PEER and router.send(arrival.peer, FRAME):
        sent += 1
    assert MAX_UNREAD_BY_PEER <= sent < 2 * MAX_UNREAD_BY_PEER


def test_the_broker_beats_on_no_connection(router: Router) -> None:
    """libzmq aborts where a beat is due on one that broke while it was not read: tests/fuzz/test_broker.py has seen it."""
    assert router._socket.heartbeat_ivl == 0
    assert router._socket.tcp_keepalive == 1
