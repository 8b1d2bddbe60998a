"""A program that sends frames without end over many connections: ``python -m tests.fuzz.attack ENDPOINT SEED SECONDS``.

It leaves out what needs no fault to do harm: a worker that takes work and does not do it, and work for another model,
for which a worker changes models. Keys are what is there against the one, and nothing against the other.
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
MOST_FRAME_BYTES = 2**21
"""No frame of `frames` is longer."""
MEAN_FRAME_BYTES = 1_000
"""Most have two hundred."""
_MOST_PART_BYTES = 10_000
_LIFE_FRAMES = 500
"""After how many frames on average a connection is closed, whatever is on its way, and made again."""

_decode = decoder(m.Message)


def attack(endpoint: str, seed: int, seconds: float) -> dict[str, float]:
    """Send for so long; what was sent, what came back."""
    chance = random.Random(seed)
    counts: dict[str, float] = {"frames": 0, "bytes": 0, "multipart": 0, "connections": CONNECTIONS, "answers": 0}
    with zmq.Context(io_threads=1) as context:
        peers = [_connect(context, endpoint) for _ in range(CONNECTIONS)]
        end = time.monotonic() + seconds
        for frame in frames(seed):
            if time.monotonic() >= end:
                break
            if _needs_no_fault(frame):
                continue
            number = chance.randrange(CONNECTIONS)
            if chance.random() < 1 / _LIFE_FRAMES:
                peers[number].close(linger=0)
                peers[number] = _connect(context, endpoint)
                counts["connections"] += 1
            peer = peers[number]
            try:
                if chance.random() < 0.02 and len(frame) < _MOST_PART_BYTES:
                    peer.send_multipart([frame] * chance.randint(2, 50), flags=zmq.DONTWAIT)
                    counts["multipart"] += 1
                else:
                    peer.send(frame, flags=zmq.DONTWAIT)
            except zmq.Again:
                time.sleep(0.001)  # The broker does not read this one any faster.
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


def _needs_no_fault(frame: bytes) -> bool:
    try:
        message = _decode(frame)
    except BirdieError:
        return False
    return isinstance(message, m.RegisterWorker) or (isinstance(message, m.Submit) and message.model != MODEL)


if __name__ == "__main__":
    print(json.dumps(attack(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
