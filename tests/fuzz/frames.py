"""An endless sequence of malformed frames, reproducible by its seed."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from typing import get_args

import msgspec

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.items import Items, PackedAnswers, PackedWork, WorkKind
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_answers, unpack_work
from birdie_zmq.types import (
    ChatTemplates,
    ChatWork,
    ComputeCounters,
    DescribeWork,
    ErrorReport,
    GenerateWork,
    GenerationParams,
    LogitsParams,
    LogLikelihoodWork,
    ModelDescription,
    ModelSpec,
    RollingWork,
    RunStatistics,
    SamplingParams,
    Work,
)

MODEL = ModelSpec(tag="pair", request_arguments=(("seed", "1"),))
_ERROR = ErrorReport(code="model", message="boom", traceback="line 1")
_SAMPLING = GenerationParams(until=("\n",), sampling=SamplingParams(top_k=5))
_WORKS: Sequence[Work] = (
    LogLikelihoodWork(pairs=[("The sky is", " blue"), ("", "Once")]),
    RollingWork(texts=["a text", "änother ☂"]),
    GenerateWork(prompts=["a"], settings=_SAMPLING, keys=[1]),
    GenerateWork(prompts=["a"], settings=GenerationParams(logits=LogitsParams(logit_bias=((3, 1.5),)), given=("n",))),
    ChatWork(conversations=[[{"role": "user", "content": "a"}]], add_generation_prompt=True),
    DescribeWork(),
)
_DESCRIPTION = ModelDescription(
    model=MODEL,
    identity="a",
    api="api.py",
    api_sha256="b",
    num_parameters=None,
    dtype="float32",
    vocab_size=32,
    max_length=64,
    bos_token_id=None,
    eos_token_id=1,
    engine="jax",
    devices=["cpu"],
    versions={"jax": "0"},
    chat=ChatTemplates(templates={"default": "{{ messages }}"}),
    report=RunStatistics(shapes=[(1, 64)]),
    process_id=7,
    start_count=1,
)
_ANSWERS: Sequence[PackedAnswers] = (
    pack_answers("loglikelihood", [(-1.0, True), (math.nan, False)]),
    pack_answers("rolling", [-1.0]),
    pack_answers("generate", ["a"]),
    pack_answers("describe", [_DESCRIPTION]),
)
SAMPLES: Sequence[m.Message] = (
    m.OpenSession(package_version="1.0"),
    m.Ping(),
    *(m.Submit(batch=number, model=MODEL, work=pack_work(work)) for number, work in enumerate(_WORKS)),
    m.CloseSession(),
    m.RegisterWorker(package_version="1.0", engine="jax", host="here", process_id=7, capacity=2, model=MODEL),
    m.Heartbeat(phase="running", model=MODEL, request_arguments=("seed",)),
    *(m.LeaseAnswered(lease=1, indices=list(range(len(answers))), answers=answers) for answers in _ANSWERS),
    m.LeaseFailed(lease=1, error=_ERROR, index=0),
    m.LeaseCrashed(lease=1, error=_ERROR),
    m.LeaseReturned(lease=1),
    m.LeaseDone(lease=1),
    m.LeaseProgressed(lease=1, progress=ComputeCounters(tokens=3, seconds=0.5)),
    m.LeaseNotice(lease=1, level="info", text="a"),
    m.DrainWorker(),
    m.CloseWorker(),
    m.Pong(workers=1),
    m.Refusal(error=_ERROR),
)
_VALID = [encode(sample) for sample in SAMPLES]
_WITH_ITEMS = [sample for sample in SAMPLES if isinstance(sample, m.Submit | m.LeaseAnswered)]
_OPENING = b"\x92" + bytes([m.WIRE_VERSION])
_LENGTHS = (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")  # list, map, text, bytes, extension: of 32 bits each
_INTERESTING = (b"\x00", b"\x7f", b"\x80", b"\x90", b"\xa0", b"\xc0", b"\xc1", b"\xc4", b"\xca", b"\xcf", b"\xff")


def unpack_items(message: m.Message) -> int:
    """Decode the items of a message as its receivers would, and encode them again; return how many receivers accept them.

    Any exception except a typed error is a crash.
    """
    accepted = 0
    if isinstance(message, m.Submit | m.Lease):
        with contextlib.suppress(MalformedMessage):
            pack_work(unpack_work(message.work))
            accepted += 1
    elif isinstance(message, m.Answered | m.LeaseAnswered | m.PartlyAnswered | m.LeasePartlyAnswered):
        for kind in get_args(WorkKind):
            with contextlib.suppress(MalformedMessage):
                pack_answers(kind, unpack_answers(kind, message.answers))
                accepted += 1
    return accepted


def frames(seed: int) -> Iterator[bytes]:
    """Yield mutated messages, messages with mutated items, memory bombs, random bytes, and a few valid messages."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.5:
            yield _mutated(rng, rng.choice(_VALID))
        elif kind < 0.7:
            yield _with_mutated_items(rng)
        elif kind < 0.8:
            yield rng.randbytes(rng.randint(0, 200))
        elif kind < 0.9:
            yield _OPENING + rng.randbytes(rng.randint(0, 200))
        elif kind < 0.9995:
            yield rng.choice(_VALID)
        else:
            yield _bomb(rng)


def _with_mutated_items(rng: random.Random) -> bytes:
    """Return a frame with a valid header, whose items or parameters are mutated."""
    message = rng.choice(_WITH_ITEMS)
    if isinstance(message, m.LeaseAnswered):
        answers = PackedAnswers(count=rng.randint(0, 3), data=_mutated(rng, message.answers.data))
        return encode(msgspec.structs.replace(message, answers=answers))
    assert isinstance(message, m.Submit)
    work = message.work
    if work.shared and rng.random() < 0.5:
        work = msgspec.structs.replace(work, shared=_mutated(rng, work.shared))
    else:
        work = msgspec.structs.replace(work, items=_mutated_items(rng, work.items))
    return encode(msgspec.structs.replace(message, work=work))


def _mutated_items(rng: random.Random, items: Items) -> Items:
    if rng.random() < 0.1:  # Valid items, with other sizes.
        cut = rng.randint(1, len(items.data))
        return Items.join([part for part in (items.data[:cut], items.data[cut:]) if part])
    mutated = [_mutated(rng, item) if rng.random() < 0.7 else item for item in items.split()]
    if rng.random() < 0.001:
        mutated.append(_nested_bomb(rng, b"\x80"))
    return Items.join([item for item in mutated if item])


def _mutated(rng: random.Random, valid: bytes) -> bytes:
    frame = bytearray(valid)
    for _ in range(rng.randint(1, 4)):
        position = rng.randint(0, len(frame))
        match rng.randint(0, 6):
            case 0:
                del frame[position:]
            case 1:
                frame[position : position + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
            case 2:
                if position < len(frame):
                    frame[position] ^= 1 << rng.randint(0, 7)
            case 3:
                frame[position : position + 1] = rng.choice(_INTERESTING)
            case 4:  # A part of another message.
                other = rng.choice(_VALID)
                begin = rng.randint(0, len(other))
                frame[position:position] = other[begin : begin + rng.randint(0, 60)]
            case 5:  # A length without the data.
                frame[position : position + 1] = rng.choice(_LENGTHS) + rng.randbytes(4)
            case 6:
                frame[position:position] = frame[: rng.randint(0, 40)]
    return bytes(frame)


def _nested_bomb(rng: random.Random, value: bytes) -> bytes:
    """Return a list of many small values."""
    count = rng.choice((1_000, 50_000, 500_000))
    return b"\xdd" + count.to_bytes(4, "big") + value * count


def _bomb(rng: random.Random) -> bytes:
    """Return a small frame with large contents: nested or long lists, small maps, a text with one wide character."""
    count = rng.choice((1_000, 50_000, 500_000))
    match rng.randint(0, 5):
        case 0:
            return _OPENING + b"\x91" * count + b"\x90"
        case 1:
            return _OPENING + _nested_bomb(rng, b"\x90")
        case 2:
            return _OPENING + _nested_bomb(rng, b"\x80")
        case 3:
            return _OPENING + (b"\xdd" + count.to_bytes(4, "big")) * 1_000
        case 4:
            conversations = Items.join([_nested_bomb(rng, rng.choice((b"\x80", b"\x90", b"\xa0"))) for _ in range(3)])
            work = PackedWork(kind="chat", items=conversations, shared=_nested_bomb(rng, b"\x80"))
            return encode(m.Submit(batch=1, model=MODEL, work=work))
    texts = RollingWork(texts=["a" * count + "\N{HUGGING FACE}"])
    return encode(m.Submit(batch=1, model=ModelSpec(tag="x" * 4_000), work=pack_work(texts)))
