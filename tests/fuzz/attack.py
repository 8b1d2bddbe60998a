"""A program that sends malformed frames over many connections: ``python -m tests.fuzz.attack ENDPOINT SEED SECONDS``.

It leaves out valid messages that cause harm: registering a worker that takes work and never does it, and work for another model,
which causes a model switch. Keys protect against the former, and nothing protects against the latter.
"""

from __future__ import annotations

import json
import random
import sys
import time

import zmq

from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from tests.fuzz.frames import MODEL, frames

CONNECTIONS = 24
MAX_FRAME_BYTES = 2**21
"""Upper bound on the length of a frame of `frames`."""
MEAN_FRAME_BYTES = 1_000
"""Mean length of a frame; most have two hundred bytes."""
_MAX_PART_BYTES = 10_000
_MEAN_FRAMES_PER_CONNECTION = 500
"""Mean number of frames after which a connection is closed without linger and reopened."""

_decode = decoder(m.Message)


def attack(endpoint: str, seed: int, seconds: float) -> dict[str, float]:
    """Send frames for a number of seconds; return counts of what was sent and received."""
    rng = random.Random(seed)
    counts: dict[str, float] = {"frames": 0, "bytes": 0, "multipart": 0, "connections": CONNECTIONS, "answers": 0}
    with zmq.Context(io_threads=1) as context:
        peers = [_connect(context, endpoint) for _ in range(CONNECTIONS)]
        end = time.monotonic() + seconds
        for frame in frames(seed):
            if time.monotonic() >= end:
                break
            if _is_valid_abuse(frame):
                continue
            number = rng.randrange(CONNECTIONS)
            if rng.random() < 1 / _MEAN_FRAMES_PER_CONNECTION:
                peers[number].close(linger=0)
                peers[number] = _connect(context, endpoint)
                counts["connections"] += 1
            peer = peers[number]
            try:
                if rng.random() < 0.02 and len(frame) < _MAX_PART_BYTES:
                    peer.send_multipart([frame] * rng.randint(2, 50), flags=zmq.DONTWAIT)
                    counts["multipart"] += 1
                else:
                    peer.send(frame, flags=zmq.DONTWAIT)
            except zmq.Again:
                time.sleep(0.001)  # The broker does not read this connection any faster.
                continue
            counts["frames"] += 1
            counts["bytes"] += len(frame)
            try:
                while True:
                    peer.recv_multipart(flags=zmq.DONTWAIT)
                    counts["answers"] += 1
            except zmq.Again:
                pass
        for peer in peers:
            peer.close(linger=0)
    return counts


def _connect(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    peer = context.socket(zmq.DEALER)
    peer.sndhwm = 4
    peer.connect(endpoint)
    peer.send(encode(m.OpenSession(package_version="1")))
    return peer


def _is_valid_abuse(frame: bytes) -> bool:
    try:
        message = _decode(frame)
    except BirdieError:
        return False
    return isinstance(message, m.RegisterWorker) or (isinstance(message, m.Submit) and message.model != MODEL)


if __name__ == "__main__":
    print(json.dumps(attack(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
