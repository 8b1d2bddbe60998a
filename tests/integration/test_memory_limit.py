"""Whatever is sent to a broker, it does not take more memory than it may."""

from __future__ import annotations

import contextlib
import socket
import sys

import msgpack
import psutil
import pytest
import zmq

from birdie_zmq.broker.memory_limit import LEAST_MIB, default_limit_mib, limit_memory
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import MAX_ELEMENTS, encode
from tests.integration.conftest import Programs

LIMIT_MIB = LEAST_MIB


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
MORE_AND_LONG = b"\x03"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the private memory of a process")
def test_a_message_whose_frames_do_not_end_ends_its_connection_at_the_limit(programs: Programs) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--memory-limit", str(LIMIT_MIB))
    process = psutil.Process(broker.process.pid)
    frame = MORE_AND_LONG + (2**20).to_bytes(8, "big") + bytes(2**20)
    with zmq.Context() as context, context.socket(zmq.DEALER) as honest:
        honest.linger = 0
        honest.connect(endpoint)
        for _ in range(3):  # what was sent before is forgotten
            most_mib, sent_mib = 0.0, 0
            with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), timeout=30) as peer:
                # By hand: a socket of libzmq sends nothing of a message before its last frame.
                peer.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY)
                with contextlib.suppress(ConnectionError):
                    while sent_mib < 4 * LIMIT_MIB:
                        peer.sendall(frame)
                        sent_mib += 1
                        most_mib = max(most_mib, process.memory_info().rss / 2**20)
            assert LIMIT_MIB / 4 < sent_mib < LIMIT_MIB
            assert most_mib < LIMIT_MIB
            honest.send(encode(m.OpenSession(package_version="1")))
            assert honest.poll(10_000), "the broker answers nobody any more"
            assert honest.recv()
    assert broker.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the private memory of a process")
def test_a_message_that_there_is_no_memory_for_is_refused_and_the_next_one_answered(programs: Programs) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--memory-limit", str(LEAST_MIB))
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


def test_a_limit_under_which_no_broker_can_work_is_refused() -> None:
    with pytest.raises(UsageError, match=f"less than the {LEAST_MIB} MiB"):
        limit_memory(LEAST_MIB - 1)
    assert default_limit_mib() >= LEAST_MIB
