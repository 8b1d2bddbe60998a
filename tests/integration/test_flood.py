"""A broker under a flood still looks at its clock, and hears a signal."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import zmq

from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from tests.integration.conftest import Programs


def test_a_flood_does_not_keep_a_broker_from_its_end(programs: Programs) -> None:
    broker, endpoint = programs.broker()
    is_over, answers = threading.Event(), 0

    def flood() -> None:
        nonlocal answers
        ping = encode(m.Ping())
        with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
            peer.linger, peer.sndtimeo = 0, 100
            peer.connect(endpoint)
            peer.send(encode(m.OpenSession(package_version="1")))
            while not is_over.is_set():
                with contextlib.suppress(zmq.Again):
                    for _ in range(100):
                        peer.send(ping)
                with contextlib.suppress(zmq.Again):
                    while True:
                        peer.recv(flags=zmq.DONTWAIT)
                        answers += 1

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        end = time.monotonic() + 30
        while answers < 10_000 and time.monotonic() < end:
            time.sleep(0.05)
        broker.process.send_signal(signal.SIGTERM)
        status = broker.process.wait(20)
    finally:
        is_over.set()
        thread.join()
    assert status == 0
    assert answers >= 10_000
