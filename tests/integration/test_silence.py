"""Request texts appear in no log of broker or worker, and in no error except in the messages of the model file itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest

from birdie_zmq.errors import (
    BirdieError,
    MalformedMessage,
    ModelCallError,
    ModelProcessDied,
    NonFiniteLogits,
    RequestError,
    TokenizerError,
)
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.packing import pack_work
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ModelSpec, RollingWork
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Programs, Served

SECRET = "the-launch-code-is-73194"
GENERATED = "aaaaaaaa"
DECODE = decoder(m.BrokerToClient | m.Refusal)


@pytest.fixture(scope="module")
def served_talkative(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[Served]:
    """Start a broker and a worker with ``talkative.py``; after all tests, their logs must contain no request text."""
    started = Programs(tmp_path_factory.mktemp("talkative"))
    broker, endpoint = started.broker()
    worker = started.worker(endpoint, model_files / "talkative.py")
    yield Served(endpoint, broker, worker)
    started.end()
    for program in (broker, worker):
        assert program.output
        assert SECRET not in program.output
        assert GENERATED not in program.output
        assert "cannot" not in program.output


@pytest.fixture(scope="module")
def lm(served_talkative: Served) -> Iterator[BirdieZMQ]:
    with BirdieZMQ(
        model_tag="any", endpoint=served_talkative.endpoint, client_settings=ClientSettings(batch_items=4)
    ) as lm:
        yield lm


def score(context: str, continuation: str) -> Callable[[BirdieZMQ], object]:
    request = instance("loglikelihood", (context, continuation), 0)
    return lambda lm: lm.loglikelihood([request], disable_tqdm=True)


def score_rolling(text: str) -> Callable[[BirdieZMQ], object]:
    request = instance("loglikelihood_rolling", (text,), 0)
    return lambda lm: lm.loglikelihood_rolling([request], disable_tqdm=True)


def generate(prompt: str) -> Callable[[BirdieZMQ], object]:
    request = instance("generate_until", (prompt, {"max_gen_toks": 16, "until": ["."]}), 0)
    return lambda lm: lm.generate_until([request], disable_tqdm=True)


def render_chat(content: str) -> Callable[[BirdieZMQ], object]:
    return lambda lm: lm.apply_chat_template([{"role": "user", "content": content}])


FAILURES = {
    "tokenizer-raises": (score_rolling(f"!{SECRET}"), TokenizerError),
    "tokenizer-returns-the-text": (score_rolling(f"={SECRET}"), TokenizerError),
    "decode-raises": (generate(SECRET), TokenizerError),
    "chat-template-raises": (render_chat(SECRET), TokenizerError),
    "nan": (score(f"%{SECRET}", SECRET), NonFiniteLogits),
    "too-long": (score(SECRET, SECRET * 10), RequestError),
    "cannot-be-sent": (score_rolling(f"\ud800{SECRET}"), MalformedMessage),
    "poison": (score(f"~{SECRET}", SECRET), ModelProcessDied),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_error_does_not_contain_the_request_text(lm: BirdieZMQ, failure: str) -> None:
    call, expected = FAILURES[failure]

    with pytest.raises(BirdieError) as caught:
        call(lm)

    assert isinstance(caught.value, expected)
    assert SECRET not in str(caught.value)
    assert GENERATED not in str(caught.value)


def test_messages_of_the_model_file_reach_its_run(lm: BirdieZMQ) -> None:
    """They reach only the run: the fixture checks the logs."""
    with pytest.raises(ModelCallError, match="cannot compute"):
        score(f"#{SECRET}", SECRET)(lm)
    with pytest.raises(TokenizerError) as caught:
        score_rolling(f"!{SECRET}")(lm)
    assert f"cannot read !{SECRET}" in (caught.value.remote_traceback or "")


def test_refusal_of_a_malformed_frame_does_not_contain_it(served_talkative: Served) -> None:
    submit = m.Submit(batch=1, model=ModelSpec(tag="any"), work=pack_work(RollingWork(texts=[SECRET])))
    frame = encode(submit)
    body = msgpack.unpackb(frame)[1]
    malformed_frames = [
        frame[:-3],
        frame.replace(b"rolling", b"\xff" + b"olling"),
        msgpack.packb([m.WIRE_VERSION, {**body, "work": {**body["work"], "shared": SECRET}}]),
        msgpack.packb([m.WIRE_VERSION, {**body, "work": {**body["work"], "items": {"sizes": SECRET, "data": SECRET}}}]),
        msgpack.packb([m.WIRE_VERSION, {**body, SECRET: SECRET}]),
        msgpack.packb([m.WIRE_VERSION, {**body, "type": SECRET}]),
        msgpack.packb([m.WIRE_VERSION, {**body, "work": {**body["work"], "kind": SECRET}}]),
        msgpack.packb([m.WIRE_VERSION + 1, SECRET]),
    ]
    with Dealer(parse_endpoint(served_talkative.endpoint)) as dealer:
        refusals: list[object] = []
        for malformed in malformed_frames:
            dealer.send(malformed)
        end = time.monotonic() + 10
        while len(refusals) < len(malformed_frames) and time.monotonic() < end:
            wait(dealer, 0.5)
            while (answer := dealer.receive()) is not None:
                refusals.append(DECODE(answer))
            time.sleep(0.01)
    assert len(refusals) == len(malformed_frames)
    assert SECRET not in str(refusals)
