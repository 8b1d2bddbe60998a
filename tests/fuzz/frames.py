"""Frames that no peer should send, without end, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from birdie_zmq.types import (
    ChatWork,
    DescribeWork,
    ErrorReport,
    GenerateWork,
    GenerationParams,
    LogLikelihoodWork,
    ModelSpec,
    ProgressDelta,
    RollingWork,
    SamplingParams,
    Scores,
    Texts,
    Work,
)

MODEL = ModelSpec(tag="pair")
_ERROR = ErrorReport(code="model", message="boom", traceback="line 1")
_SAMPLING = GenerationParams(until=("\n",), sampling=SamplingParams(top_k=5))
_WORKS: Sequence[Work] = (
    LogLikelihoodWork(pairs=[("The sky is", " blue"), ("", "Once")]),
    RollingWork(texts=["a text", "änother ☂"]),
    GenerateWork(prompts=["a"], settings=_SAMPLING, keys=[1]),
    ChatWork(conversations=[[{"role": "user", "content": "a"}]], add_generation_prompt=True),
    DescribeWork(),
)
_SCORES = Scores(loglikelihoods=np.array([-1.0, np.nan]), greedy=np.array([True, False]))
SAMPLES: Sequence[m.Message] = (
    m.OpenSession(package_version="1.0"),
    m.Ping(),
    *(m.Submit(batch=number, model=MODEL, work=work) for number, work in enumerate(_WORKS)),
    m.CloseSession(),
    m.RegisterWorker(package_version="1.0", engine="jax", host="here", process_id=7, capacity=2, model=MODEL),
    m.Heartbeat(phase="running", model=MODEL),
    m.LeaseAnswered(lease=1, indices=np.arange(2, dtype=np.int32), answers=_SCORES),
    m.LeaseAnswered(lease=1, indices=np.arange(1, dtype=np.int32), answers=Texts(texts=["a"])),
    m.LeaseFailed(lease=1, error=_ERROR, index=0),
    m.LeaseCrashed(lease=1, error=_ERROR),
    m.LeaseReturned(lease=1),
    m.LeaseDone(lease=1),
    m.LeaseProgressed(
        lease=1, progress=ProgressDelta(remaining=3, active_lengths=(1, 2), finished_lengths=(3,), decode_rows=2)
    ),
    m.LeaseNotice(lease=1, level="info", text="a"),
    m.DrainWorker(),
    m.CloseWorker(),
    m.Pong(workers=1),
    m.Refusal(error=_ERROR),
)
_VALID = [encode(sample) for sample in SAMPLES]
_OPENING = b"\x92" + bytes([m.WIRE_VERSION])
_LENGTHS = (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")  # list, map, text, bytes, extension: of 32 bits each
_INTERESTING = (b"\x00", b"\x7f", b"\x80", b"\x90", b"\xa0", b"\xc0", b"\xc1", b"\xc4", b"\xca", b"\xcf", b"\xff")


def frames(seed: int) -> Iterator[bytes]:
    """Mutated messages, bombs, bytes of chance, and now and then a message that is sound."""
    chance = random.Random(seed)
    while True:
        kind = chance.random()
        if kind < 0.7:
            yield _mutated(chance)
        elif kind < 0.8:
            yield chance.randbytes(chance.randint(0, 200))
        elif kind < 0.9:
            yield _OPENING + chance.randbytes(chance.randint(0, 200))
        elif kind < 0.9995:
            yield chance.choice(_VALID)
        else:
            yield _bomb(chance)


def _mutated(chance: random.Random) -> bytes:
    frame = bytearray(chance.choice(_VALID))
    for _ in range(chance.randint(1, 4)):
        place = chance.randint(0, len(frame))
        match chance.randint(0, 6):
            case 0:
                del frame[place:]
            case 1:
                frame[place : place + chance.randint(0, 8)] = chance.randbytes(chance.randint(0, 8))
            case 2:
                if place < len(frame):
                    frame[place] ^= 1 << chance.randint(0, 7)
            case 3:
                frame[place : place + 1] = chance.choice(_INTERESTING)
            case 4:  # A piece of another message.
                other = chance.choice(_VALID)
                begin = chance.randint(0, len(other))
                frame[place:place] = other[begin : begin + chance.randint(0, 60)]
            case 5:  # A length that is not there.
                frame[place : place + 1] = chance.choice(_LENGTHS) + chance.randbytes(4)
            case 6:
                frame[place:place] = frame[: chance.randint(0, 40)]
    return bytes(frame)


def _bomb(chance: random.Random) -> bytes:
    """Much of little: nested or long lists, small maps, a text that is wide for one letter."""
    many = chance.choice((1_000, 50_000, 500_000))
    long_list = b"\xdd" + many.to_bytes(4, "big")
    match chance.randint(0, 4):
        case 0:
            return _OPENING + b"\x91" * many + b"\x90"
        case 1:
            return _OPENING + long_list + b"\x90" * many
        case 2:
            return _OPENING + long_list + b"\x80" * many
        case 3:
            return _OPENING + long_list * 1_000
    work = RollingWork(texts=["a" * many + "\N{HUGGING FACE}"])
    return encode(m.Submit(batch=1, model=ModelSpec(tag="x" * 4_000), work=work))
