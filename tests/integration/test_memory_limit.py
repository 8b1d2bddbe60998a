"""A broker never uses more memory than its limit, whatever bytes it receives."""

from __future__ import annotations

import contextlib
import socket
import sys

import msgpack
import psutil
import pytest
import zmq

from birdie_zmq.broker.memory_limit import MIN_LIMIT_MIB, default_limit_mib, limit_memory
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.limits import MAX_ELEMENTS
from tests.integration.conftest import Programs

LIMIT_MIB = MIN_LIMIT_MIB

ZMTP_NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY_COMMAND = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
MORE_LONG_FLAGS = b"\x03"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit the private memory of a process")
def test_endless_multipart_message_is_disconnected_at_the_memory_limit(programs: Programs) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--memory-limit", str(LIMIT_MIB))
    process = psutil.Process(broker.process.pid)
    frame = MORE_LONG_FLAGS + (2**20).to_bytes(8, "big") + bytes(2**20)
    with zmq.Context() as context, context.socket(zmq.DEALER) as other_client:
        other_client.linger = 0
        other_client.connect(endpoint)
        for _ in range(3):  # the memory of a closed connection is freed
            max_rss_mib, sent_mib = 0.0, 0
            with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), timeout=30) as peer:
                # A raw TCP socket, because a libzmq socket sends nothing of a multipart message before its last frame.
                peer.sendall(ZMTP_NULL_GREETING + b"\x04" + bytes([len(READY_COMMAND)]) + READY_COMMAND)
                with contextlib.suppress(ConnectionError):
                    while sent_mib < 4 * LIMIT_MIB:
                        peer.sendall(frame)
                        sent_mib += 1
                        max_rss_mib = max(max_rss_mib, process.memory_info().rss / 2**20)
            assert LIMIT_MIB / 4 < sent_mib < LIMIT_MIB
            assert max_rss_mib < LIMIT_MIB
            other_client.send(encode(m.OpenSession(package_version="1")))
            assert other_client.poll(10_000), "the broker no longer answers"
            assert other_client.recv()
    assert broker.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit the private memory of a process")
def test_message_beyond_the_free_memory_is_rejected_and_the_next_one_answered(programs: Programs) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--memory-limit", str(MIN_LIMIT_MIB))
    bomb = b"\x92" + bytes([m.WIRE_VERSION]) + b"\xdd" + (MAX_ELEMENTS // 2).to_bytes(4, "big")
    bomb += b"".join(msgpack.packb(f"{number:059}\N{HUGGING FACE}") for number in range(MAX_ELEMENTS // 2))
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(endpoint)
        for frame in (bomb, encode(m.OpenSession(package_version="1"))):
            peer.send(frame)
            assert peer.poll(20_000), broker.output
            answer = peer.recv()
            assert (b"no memory left to read this message" in answer) == (frame is bomb)
    assert broker.stop() == 0


def test_memory_limit_below_the_minimum_is_rejected() -> None:
    with pytest.raises(UsageError, match=f"less than the {MIN_LIMIT_MIB} MiB"):
        limit_memory(MIN_LIMIT_MIB - 1)
    assert default_limit_mib() >= MIN_LIMIT_MIB
