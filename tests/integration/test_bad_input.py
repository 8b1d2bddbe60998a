"""What a person can get wrong ends the run with one error that names the cause, and broker and worker go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.errors import (
    BirdieError,
    BrokerUnavailable,
    ModelCallError,
    ModelLoadError,
    ModelOutputError,
    NonFiniteLogits,
    RequestError,
    TokenizerError,
    TokenOutOfVocabulary,
    UnknownModelTag,
    UnsupportedRequest,
    UsageError,
    UserModuleError,
)
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.integration.conftest import Programs, Served, wait_until


def score(lm: BirdieZMQ, context: str, continuation: str) -> list[tuple[float, bool]]:
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    return lm.loglikelihood([request, request], disable_tqdm=True)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> Iterator[str]:
    """The endpoint of a worker with the page ``broken.py``, which must answer again after every fault."""
    started = Programs(tmp_path_factory.mktemp("broken"))
    _, endpoint = started.broker()
    started.worker(endpoint, pages / "broken.py")
    yield endpoint
    with BirdieZMQ(model_tag="good", endpoint=endpoint) as lm:
        ((loglikelihood, _), _) = score(lm, "a", "b")
    started.end()
    assert loglikelihood == pytest.approx(-5.5530, abs=1e-4)  # log 1/258


LOADING = {
    "raises": (ModelLoadError, ["load_model('raises')", "broken.py", "OSError: no weights at /nowhere"]),
    "nothing": (ModelLoadError, ["load_model returned None", "(apply, params)"]),
    "flat": (ModelOutputError, ["int32[1, 16]", "float[1, 16, vocabulary]", "float32[1, 258]"]),
    "no-decode": (TokenizerError, ["Mute", "decode()"]),
    "no-special-tokens": (TokenizerError, ["bos_token_id", "eos_token_id"]),
}


@pytest.mark.parametrize("tag", LOADING)
def test_a_model_that_cannot_be_loaded_says_why(broken: str, tag: str) -> None:
    expected, words = LOADING[tag]

    with pytest.raises(expected) as caught:
        BirdieZMQ(model_tag=tag, endpoint=broken)

    for word in words:
        assert word in caught.value.message


def test_the_traceback_of_the_page_comes_along(broken: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        BirdieZMQ(model_tag="raises", endpoint=broken)

    assert 'return load_weights("/nowhere")' in "".join(caught.value.__notes__)


def test_a_function_that_raises_while_scoring_brings_its_traceback(broken: str) -> None:
    with (
        BirdieZMQ(model_tag="explodes", endpoint=broken) as lm,
        pytest.raises(ModelCallError, match="the model's own function gave up") as caught,
    ):
        score(lm, "a", "b")

    assert "in explode" in (caught.value.remote_traceback or "")


def test_a_token_that_the_model_does_not_have_is_named(broken: str) -> None:
    with (
        BirdieZMQ(model_tag="small-vocabulary", endpoint=broken) as lm,
        pytest.raises(TokenOutOfVocabulary, match=r"token 122, but .* 100 tokens"),
    ):
        score(lm, "A", "z")


def test_nan_is_never_a_score(broken: str) -> None:
    with BirdieZMQ(model_tag="nan", endpoint=broken) as lm, pytest.raises(NonFiniteLogits, match="NaN or infinity"):
        score(lm, "a", "b")


def test_an_unknown_tag_of_the_built_in_page_lists_what_there_is() -> None:
    with pytest.raises(UnknownModelTag, match="It may be demo; or the path of a checkpoint directory"):
        BirdieZMQ(model_tag="no-such-model")


def test_an_unknown_word_for_a_built_in_model_is_refused() -> None:
    with pytest.raises(UsageError, match="does not know temprature"):
        BirdieZMQ(model_tag="demo", temprature=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def load_model(model_tag):\n    pass\n", "has no function load_tokenizer"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def load_model(:\n", "SyntaxError"),
    ],
)
def test_a_page_that_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    page = tmp_path / "page.py"
    page.write_text(text)

    with pytest.raises(UserModuleError) as caught:
        BirdieZMQ(model_tag="any", api=str(page))

    assert words in caught.value.message
    assert str(page) in caught.value.message


def test_a_continuation_that_no_window_holds_is_refused_with_the_numbers(served: Served) -> None:
    with (
        BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm,
        pytest.raises(RequestError, match=r"200 tokens .* max_length of 128"),
    ):
        score(lm, "a", "b" * 200)


def test_no_room_for_a_prompt_is_refused_with_the_numbers(served: Served) -> None:
    request = Instance("generate_until", {}, ("a", {"max_gen_toks": 128}), 0)
    with (
        BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm,
        pytest.raises(RequestError, match="max_gen_toks is 128"),
    ):
        lm.generate_until([request], disable_tqdm=True)


def test_beam_search_is_refused_rather_than_decoded_greedily(served: Served) -> None:
    request = Instance("generate_until", {}, ("a", {"num_beams": 4}), 0)
    with (
        BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm,
        pytest.raises(UnsupportedRequest, match="num_beams=4, which is not supported"),
    ):
        lm.generate_until([request], disable_tqdm=True)


def test_no_broker_is_an_error_in_seconds_that_says_what_to_start() -> None:
    began = time.monotonic()

    with pytest.raises(BrokerUnavailable, match=r"no broker answered at tcp://127.0.0.1:9 .* python broker.py"):
        BirdieZMQ(model_tag="demo", port=9)

    assert time.monotonic() - began < 10


def test_no_worker_is_an_error_that_says_what_to_start(programs: Programs) -> None:
    _, endpoint = programs.broker()

    with pytest.raises(BirdieError, match=r"had no worker for 2 s; start one with: python -m workers.jax_worker"):
        BirdieZMQ(model_tag="demo", endpoint=endpoint, client_settings=ClientSettings(worker_wait_s=2.0))


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        ("tcp://nonsense", "is no endpoint"),
        ("tcp://0.0.0.0:5555", "could be reached from other machines"),
        ("ipc:///no/such/folder/broker", "No such file or directory"),
    ],
)
def test_a_broker_that_cannot_be_bound_says_so_in_one_line(programs: Programs, bind: str, words: str) -> None:
    program = programs.start("broker.py", "--bind", bind)

    assert program.process.wait(30) == 2
    assert words in program.output
    assert program.output.count("\n") == 1


def test_a_port_in_use_is_named(programs: Programs) -> None:
    _, endpoint = programs.broker()
    second = programs.start("broker.py", "--bind", endpoint)

    assert second.process.wait(30) == 2
    assert f"cannot bind {endpoint}: the port is in use" in second.output


def test_a_worker_started_with_a_missing_page_says_so(programs: Programs) -> None:
    program = programs.start("-m", "workers.jax_worker", "--api", "/no/such/api.py")

    assert program.process.wait(30) == 2
    assert "there is no page at /no/such/api.py" in program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_broker_and_worker_cleanly(programs: Programs, pages: Path, number: int) -> None:
    broker, endpoint = programs.broker()
    worker = programs.worker(endpoint, pages / "letters.py")

    assert worker.stop(number) == 0
    wait_until(lambda: "it said goodbye" in broker.output, "the worker's goodbye")
    assert broker.stop(number) == 0
    assert "Traceback" not in broker.output + worker.output
