"""The codec under frames without end: a message or a typed refusal, in bounded memory.

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
from birdie_zmq.protocol.codec import MAX_ELEMENTS, decoder, encode
from tests.fuzz.frames import frames
from tests.protocol.test_codec import RECORDS, body_of, frame_of, junk, messages

SEED = int(os.environ.get("BIRDIE_FUZZ_SEED", "20261125"))
INPUTS = int(os.environ.get("BIRDIE_FUZZ_INPUTS", "300000"))
EXAMPLES = int(os.environ.get("BIRDIE_FUZZ_EXAMPLES", "20000"))
MOST_BYTES = 128 * MAX_ELEMENTS
"""What a frame of so many elements may take while it is read, the most that tests/protocol/test_codec.py allows one frame."""

decode = decoder(m.Message)


def is_taken(frame: bytes) -> bool:
    """Whether a frame is decoded, not refused; what is raised else is a crash, and what is decoded can be sent on."""
    try:
        message: m.Message = decode(frame)
    except ProtocolError:
        return False
    encode(message)
    return True


def run(count: int) -> None:
    began = time.monotonic()
    taken = 0
    tracemalloc.start()
    try:
        for frame in itertools.islice(frames(SEED), count):
            taken += is_taken(frame)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(
        f"\ncodec, seed {SEED}: {count:,} frames tried, {taken:,} of them taken, crashes 0, peak memory "
        f"{peak_bytes / 2**20:.0f} MiB (bound {MOST_BYTES >> 20}), {time.monotonic() - began:.0f} s"
    )
    assert 0 < taken < count
    assert peak_bytes < MOST_BYTES


def test_frames_are_decoded_or_refused() -> None:
    run(2_000)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_many_frames_are_decoded_or_refused() -> None:
    run(INPUTS)


def with_a_wrong_field(message: m.Message, data: st.DataObject) -> bytes:
    body = body_of(message)
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(junk)
    return frame_of(body)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@settings(max_examples=EXAMPLES, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
@given(st.one_of(messages, junk, st.binary(max_size=1_000)), st.data())
def test_whatever_hypothesis_finds_is_decoded_or_refused(something: object, data: st.DataObject) -> None:
    if isinstance(something, RECORDS):
        is_taken(with_a_wrong_field(cast(m.Message, something), data))
    elif isinstance(something, bytes):
        is_taken(something)
    else:
        is_taken(frame_of(something))
