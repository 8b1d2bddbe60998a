"""Fuzzing the codec: every frame gives a message or a typed error, in bounded memory.

A few seconds' worth belong to every run of the tests; ``tox -e fuzz`` tries as many as ``BIRDIE_FUZZ_INPUTS`` says.
"""

from __future__ import annotations

import itertools
import os
import time
import tracemalloc
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from birdie_zmq.errors import ProtocolError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.limits import MAX_ELEMENTS
from tests.fuzz.frames import frames
from tests.protocol.test_codec import RECORDS, body_of, frame_of, junk, messages

SEED = int(os.environ.get("BIRDIE_FUZZ_SEED", "20261125"))
INPUTS = int(os.environ.get("BIRDIE_FUZZ_INPUTS", "300000"))
EXAMPLES = int(os.environ.get("BIRDIE_FUZZ_EXAMPLES", "20000"))
MAX_MEMORY_BYTES = 128 * MAX_ELEMENTS
"""Memory limit for decoding a frame with the maximum number of elements, as in tests/protocol/test_codec.py."""

decode = decoder(m.Message)


def is_accepted(frame: bytes) -> bool:
    """Return whether a frame is decoded and can be encoded again; any exception except ProtocolError is a crash."""
    try:
        message: m.Message = decode(frame)
    except ProtocolError:
        return False
    encode(message)
    return True


def run(count: int) -> None:
    began = time.monotonic()
    accepted = 0
    tracemalloc.start()
    try:
        for frame in itertools.islice(frames(SEED), count):
            accepted += is_accepted(frame)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(
        f"\ncodec, seed {SEED}: {count:,} frames tried, {accepted:,} of them accepted, crashes 0, peak memory "
        f"{peak_bytes / 2**20:.0f} MiB (bound {MAX_MEMORY_BYTES >> 20}), {time.monotonic() - began:.0f} s"
    )
    assert 0 < accepted < count
    assert peak_bytes < MAX_MEMORY_BYTES


def test_frames_are_decoded_or_rejected() -> None:
    run(2_000)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_many_frames_are_decoded_or_rejected() -> None:
    run(INPUTS)


def with_invalid_field(message: m.Message, data: st.DataObject) -> bytes:
    body = body_of(message)
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(junk)
    return frame_of(body)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@settings(max_examples=EXAMPLES, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
@given(st.one_of(messages, junk, st.binary(max_size=1_000)), st.data())
def test_hypothesis_examples_are_decoded_or_rejected(example: object, data: st.DataObject) -> None:
    if isinstance(example, RECORDS):
        is_accepted(with_invalid_field(cast(m.Message, example), data))
    elif isinstance(example, bytes):
        is_accepted(example)
    else:
        is_accepted(frame_of(example))
