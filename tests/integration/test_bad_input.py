"""A user error ends the run with one error that names the cause; the broker and the worker continue."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.instances import instance
from tests.integration.conftest import Programs, Served, wait_until


def score(lm: BirdieZMQ, context: str, continuation: str) -> list[tuple[float, bool]]:
    request = instance("loglikelihood", (context, continuation), 0)
    return lm.loglikelihood([request, request], disable_tqdm=True)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[str]:
    """Start a worker with ``broken.py`` and return its endpoint; after all faults, it must still answer."""
    started = Programs(tmp_path_factory.mktemp("broken"))
    _, endpoint = started.broker()
    started.worker(endpoint, model_files / "broken.py")
    yield endpoint
    with BirdieZMQ(model_tag="good", endpoint=endpoint) as lm:
        ((loglikelihood, _), _) = score(lm, "a", "b")
    started.end()
    assert loglikelihood == pytest.approx(-5.5530, abs=1e-4)  # log 1/258


LOAD_FAILURES = {
    "nothing": (ModelLoadError, ["load_model returned None", "(apply, params)"]),
    "flat": (ModelOutputError, ["int32[1, 16]", "float[1, 16, vocabulary]", "float32[1, 258]"]),
    "no-decode": (TokenizerError, ["WithoutDecode", "decode()"]),
    "no-special-tokens": (TokenizerError, ["bos_token_id", "eos_token_id"]),
}


@pytest.mark.parametrize("tag", LOAD_FAILURES)
def test_model_load_failure_names_the_cause(broken: str, tag: str) -> None:
    expected, words = LOAD_FAILURES[tag]

    with pytest.raises(expected) as caught:
        BirdieZMQ(model_tag=tag, endpoint=broken)

    for word in words:
        assert word in caught.value.message


def test_load_error_names_the_cause_and_has_the_traceback_of_the_model_file(broken: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        BirdieZMQ(model_tag="raises", endpoint=broken)

    for word in ("load_model('raises')", "broken.py", "OSError: no weights at /nowhere"):
        assert word in caught.value.message
    assert 'return load_weights("/nowhere")' in "".join(caught.value.__notes__)


def test_scoring_error_has_the_traceback_of_the_model_function(broken: str) -> None:
    with (
        BirdieZMQ(model_tag="explodes", endpoint=broken) as lm,
        pytest.raises(ModelCallError, match="the model's own function gave up") as caught,
    ):
        score(lm, "a", "b")

    assert "in explode" in (caught.value.remote_traceback or "")


def test_token_outside_the_vocabulary_is_named(broken: str) -> None:
    with (
        BirdieZMQ(model_tag="small-vocabulary", endpoint=broken) as lm,
        pytest.raises(TokenOutOfVocabulary, match=r"token 122, but .* 100 tokens"),
    ):
        score(lm, "A", "z")


def test_nan_logits_raise_an_error(broken: str) -> None:
    with BirdieZMQ(model_tag="nan", endpoint=broken) as lm, pytest.raises(NonFiniteLogits, match="NaN or infinity"):
        score(lm, "a", "b")


def test_unknown_built_in_tag_lists_the_valid_tags() -> None:
    with pytest.raises(UnknownModelTag, match="It may be demo; or the path of a checkpoint directory"):
        BirdieZMQ(model_tag="no-such-model")


def test_unknown_argument_of_a_built_in_model_is_rejected() -> None:
    with pytest.raises(UsageError, match="has no argument temprature"):
        BirdieZMQ(model_tag="demo", temprature=1)


def test_invalid_model_file_is_named(tmp_path: Path) -> None:
    model_file = tmp_path / "model_file.py"
    model_file.write_text("def load_model(:\n")

    with pytest.raises(UserModuleError) as caught:
        BirdieZMQ(model_tag="any", api=str(model_file))

    assert "SyntaxError" in caught.value.message
    assert str(model_file) in caught.value.message


def test_continuation_longer_than_max_length_is_rejected(served: Served) -> None:
    with (
        BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm,
        pytest.raises(RequestError, match=r"200 tokens .* max_length of 128"),
    ):
        score(lm, "a", "b" * 200)


def test_max_gen_toks_without_space_for_the_prompt_is_rejected(served: Served) -> None:
    request = instance("generate_until", ("a", {"max_gen_toks": 128}), 0)
    with (
        BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm,
        pytest.raises(RequestError, match="max_gen_toks is 128"),
    ):
        lm.generate_until([request], disable_tqdm=True)


def test_beam_search_is_rejected(served: Served) -> None:
    request = instance("generate_until", ("a", {"num_beams": 4}), 0)
    with (
        BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm,
        pytest.raises(UnsupportedRequest, match="num_beams=4, which is not supported"),
    ):
        lm.generate_until([request], disable_tqdm=True)


def test_missing_broker_is_reported_within_10_s_with_the_start_command() -> None:
    began = time.monotonic()

    with pytest.raises(BrokerUnavailable, match=r"no broker answered at tcp://127.0.0.1:9 .* python broker.py"):
        BirdieZMQ(model_tag="demo", port=9)

    assert time.monotonic() - began < 10


def test_missing_worker_is_reported_with_the_start_command(programs: Programs) -> None:
    _, endpoint = programs.broker()

    with pytest.raises(BirdieError, match=r"had no worker for 2 s; start one with: python -m workers.jax_worker"):
        BirdieZMQ(model_tag="demo", endpoint=endpoint, client_settings=ClientSettings(worker_wait_s=2.0))


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        ("tcp://nonsense", "is not an endpoint"),
        ("tcp://0.0.0.0:5555", "could be reached from other machines"),
        ("ipc:///no/such/folder/broker", "No such file or directory"),
    ],
)
def test_broker_bind_failure_is_reported_in_one_line(programs: Programs, bind: str, words: str) -> None:
    program = programs.start("broker.py", "--bind", bind)

    assert program.process.wait(30) == 2
    assert words in program.output
    assert program.output.count("\n") == 1


def test_port_in_use_is_named(programs: Programs) -> None:
    _, endpoint = programs.broker()
    second = programs.start("broker.py", "--bind", endpoint)

    assert second.process.wait(30) == 2
    assert f"cannot bind {endpoint}: the port is in use" in second.output


def test_worker_with_a_missing_model_file_names_it(programs: Programs) -> None:
    program = programs.start("-m", "workers.jax_worker", "--api", "/no/such/api.py")

    assert program.process.wait(30) == 2
    assert "there is no user module at /no/such/api.py" in program.output


def test_broker_and_worker_exit_cleanly_on_ctrl_c(programs: Programs, model_files: Path) -> None:
    broker, endpoint = programs.broker()
    worker = programs.worker(endpoint, model_files / "letters.py")

    assert worker.stop(signal.SIGINT) == 0
    wait_until(lambda: "it shut down" in broker.output, "the disconnect of the worker")
    assert broker.stop(signal.SIGINT) == 0
    assert "Traceback" not in broker.output + worker.output
