"""A broker that is flooded with messages still runs its timers and handles signals."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import zmq

from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from tests.integration.conftest import Programs


def test_flooded_broker_exits_on_sigterm(programs: Programs) -> None:
    broker, endpoint = programs.broker()
    stop, answers = threading.Event(), 0

    def flood() -> None:
        nonlocal answers
        ping = encode(m.Ping())
        with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
            peer.linger, peer.sndtimeo = 0, 100
            peer.connect(endpoint)
            peer.send(encode(m.OpenSession(package_version="1")))
            while not stop.is_set():
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
        stop.set()
        thread.join()
    assert status == 0
    assert answers >= 10_000
