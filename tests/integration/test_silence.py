"""What a person asks of a model is in no log of broker or worker, and in no error but what their own page says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from lm_eval.api.instance import Instance

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
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.sockets import Dealer, wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ModelSpec, RollingWork
from harness_model import BirdieZMQ
from tests.integration.conftest import Programs, Served

SECRET = "the-launch-code-is-73194"
GENERATED = "aaaaaaaa"
DECODE = decoder(m.BrokerToClient | m.Refusal)


@pytest.fixture(scope="module")
def listened(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> Iterator[Served]:
    """A broker and a worker with the page ``talkative.py``; whatever was asked, their logs must not say it."""
    started = Programs(tmp_path_factory.mktemp("listened"))
    broker, endpoint = started.broker()
    worker = started.worker(endpoint, pages / "talkative.py")
    yield Served(endpoint, broker, worker)
    started.end()
    for program in (broker, worker):
        assert program.output
        assert SECRET not in program.output
        assert GENERATED not in program.output
        assert "cannot" not in program.output


@pytest.fixture(scope="module")
def lm(listened: Served) -> Iterator[BirdieZMQ]:
    with BirdieZMQ(model_tag="any", endpoint=listened.endpoint, client_settings=ClientSettings(batch_items=4)) as lm:
        yield lm


def scores(context: str, continuation: str) -> Callable[[BirdieZMQ], object]:
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    return lambda lm: lm.loglikelihood([request], disable_tqdm=True)


def rolls(text: str) -> Callable[[BirdieZMQ], object]:
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    return lambda lm: lm.loglikelihood_rolling([request], disable_tqdm=True)


def generates(prompt: str) -> Callable[[BirdieZMQ], object]:
    request = Instance("generate_until", {}, (prompt, {"max_gen_toks": 16, "until": ["."]}), 0)
    return lambda lm: lm.generate_until([request], disable_tqdm=True)


def renders(content: str) -> Callable[[BirdieZMQ], object]:
    return lambda lm: lm.apply_chat_template([{"role": "user", "content": content}])


PATHS = {
    "tokenizer-raises": (rolls(f"!{SECRET}"), TokenizerError),
    "tokenizer-gives-the-text": (rolls(f"={SECRET}"), TokenizerError),
    "decoding": (generates(SECRET), TokenizerError),
    "template": (renders(SECRET), TokenizerError),
    "nan": (scores(f"%{SECRET}", SECRET), NonFiniteLogits),
    "over-long": (scores(SECRET, SECRET * 10), RequestError),
    "cannot-be-sent": (rolls(f"\ud800{SECRET}"), MalformedMessage),
    "poison": (scores(f"~{SECRET}", SECRET), ModelProcessDied),
}


@pytest.mark.parametrize("path", PATHS)
def test_an_error_does_not_repeat_the_request(lm: BirdieZMQ, path: str) -> None:
    ask, expected = PATHS[path]

    with pytest.raises(BirdieError) as caught:
        ask(lm)

    assert isinstance(caught.value, expected)
    assert SECRET not in str(caught.value)
    assert GENERATED not in str(caught.value)


def test_what_the_page_itself_says_reaches_its_run(lm: BirdieZMQ) -> None:
    """And only that: the fixture looks into the logs."""
    with pytest.raises(ModelCallError, match="cannot compute"):
        scores(f"#{SECRET}", SECRET)(lm)
    with pytest.raises(TokenizerError) as caught:
        rolls(f"!{SECRET}")(lm)
    assert f"cannot read !{SECRET}" in (caught.value.remote_traceback or "")


def test_a_torn_frame_is_not_repeated(listened: Served) -> None:
    submit = m.Submit(batch=1, model=ModelSpec(tag="any"), work=RollingWork(texts=[SECRET]))
    frame = encode(submit)
    body = msgpack.unpackb(frame)[1]
    torn = [
        frame[:-3],
        frame.replace(SECRET.encode(), b"\xff" + SECRET.encode()[1:]),
        msgpack.packb([m.WIRE_VERSION, {**body, SECRET: SECRET}]),
        msgpack.packb([m.WIRE_VERSION, {**body, "type": SECRET}]),
        msgpack.packb([m.WIRE_VERSION, {**body, "work": {"type": SECRET}}]),
        msgpack.packb([m.WIRE_VERSION + 1, SECRET]),
    ]
    with Dealer(parse_endpoint(listened.endpoint)) as dealer:
        refusals: list[object] = []
        for each in torn:
            dealer.send(each)
        end = time.monotonic() + 10
        while len(refusals) < len(torn) and time.monotonic() < end:
            wait(dealer, 0.5)
            while (answer := dealer.receive()) is not None:
                refusals.append(DECODE(answer))
            time.sleep(0.01)
    assert len(refusals) == len(torn)
    assert SECRET not in str(refusals)
