"""Generation with changed logits: all ways to decode give the texts of a plain loop over whole rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.backend import NextTokens
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.generation_settings import generation_settings
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.jax.decoding import JaxDecoding
from birdie_zmq.engine.logits_processing import (
    LogitsProcessing,
    ProcessingState,
    process_logits,
    processing_arrays,
    token_history,
)
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import OutOfDeviceMemory, RequestError
from birdie_zmq.types import GenerateWork, GenerationParams, LogitsParams, SamplingParams
from tests.engine.jax.test_decoding import (
    LETTERS,
    MAX_LENGTH,
    MODELS,
    PROMPTS,
    Alphabet,
    RecordingBackend,
    evaluator_of,
    texts_and_notices,
)
from tests.engine.recurrent import VOCABULARY
from tests.engine.recurrent import logits as recurrent_logits
from tests.model_files.numpy_engine import NumpyBackend

EOS = 7
KEYS = list(range(7))
COUNT = 12

OPTIONS: dict[str, LogitsParams] = {
    "bias": LogitsParams(logit_bias=((3, 4.0), (9, -6.0))),
    "suppressed": LogitsParams(suppress_tokens=tuple(range(0, VOCABULARY, 3))),
    "minimum": LogitsParams(min_new_tokens=5, min_length=8, eos_token_id=tuple(range(0, VOCABULARY, 2))),
    "repetition": LogitsParams(repetition_penalty=1.8),
    "counts": LogitsParams(presence_penalty=3.0, frequency_penalty=2.0),
    "all": LogitsParams(
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        begin_suppress_tokens=(1, 2, 3, 4, 5),
        bad_words_ids=(8,),
        sequence_bias=((11, 2.0),),
        min_new_tokens=3,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def backend(request: pytest.FixtureRequest) -> RecordingBackend:
    """Return a backend of each model; its executables are compiled once for all tests."""
    backend = RecordingBackend(MODELS[request.param]())
    backend.budget = dataclasses.replace(backend.budget, decoding_rows=4)
    return backend


def processing_of(logits: LogitsParams) -> tuple[LogitsProcessing | None, frozenset[int]]:
    params = GenerationParams(logits=logits)
    settings = generation_settings(params, TokenizerAdapter(Alphabet(EOS)), VOCABULARY)
    return settings.choice.processing, frozenset(settings.stop.eos_token_ids)


def plain_text(backend: RecordingBackend, prompt: str, logits: LogitsParams) -> str:
    """Run the plain greedy loop: each token from the logits of the whole row, changed in NumPy."""
    how, ends = processing_of(logits)
    assert how is not None
    arrays = processing_arrays(how, VOCABULARY)
    begin = Alphabet().encode(prompt) or [Alphabet.bos_token_id]
    tokens: list[int] = []
    while len(tokens) < COUNT:
        row = begin + tokens
        values = np.asarray(backend.direct(np.array([row + [0] * (MAX_LENGTH - len(row))], np.int32)))
        history = token_history(np.array(begin, np.int32), np.array(tokens, np.int32), VOCABULARY)
        state = ProcessingState(np.array([len(tokens)]), how.minimum([len(begin)]), history[None])
        chosen = int(process_logits(np, values[:, len(row) - 1], arrays, state)[0].argmax())
        tokens += [chosen] if chosen not in ends or chosen != EOS else []
        if chosen in ends:
            break
    return Alphabet().decode(tokens)


def generate(
    evaluator: Evaluator,
    logits: LogitsParams | None,
    prompts: Sequence[str] = PROMPTS,
    sampling: SamplingParams | None = None,
    **limits: Any,
) -> list[str]:
    settings = GenerationParams(max_gen_toks=COUNT, sampling=sampling, logits=logits)
    keys = KEYS[: len(prompts)] if sampling else []
    work = GenerateWork(prompts=list(prompts), settings=settings, keys=keys)
    texts, _ = texts_and_notices(evaluator, work, **limits)
    return texts


@pytest.mark.parametrize(("name", "tokens_per_call"), [*((name, 5) for name in OPTIONS), ("all", 1)])
def test_texts_equal_the_plain_loop_with_refilled_and_narrowed_rows(
    backend: RecordingBackend, name: str, tokens_per_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "budget", dataclasses.replace(backend.budget, tokens_per_call=tokens_per_call))
    logits = OPTIONS[name]

    texts = generate(evaluator_of(backend, EOS), logits)

    assert texts == [plain_text(backend, prompt, logits) for prompt in PROMPTS]
    assert texts != generate(evaluator_of(backend, EOS), None)


@pytest.mark.parametrize("sampling", [None, SamplingParams(temperature=2.0, top_p=0.9)])
@pytest.mark.parametrize("name", ["minimum", "all"])
def test_a_model_without_a_state_generates_the_same_texts(
    backend: RecordingBackend, name: str, sampling: SamplingParams | None
) -> None:
    plain = Model(logits=backend._model.functions.logits or recurrent_logits, params=backend._model.params)
    evaluator = Evaluator(TokenizerAdapter(Alphabet(EOS)), JaxBackend(resolve(plain), MAX_LENGTH), MAX_LENGTH)

    texts = generate(evaluator, OPTIONS[name], sampling=sampling)

    assert texts == generate(evaluator_of(backend, EOS), OPTIONS[name], sampling=sampling, rows=2)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_engine_in_numpy_generates_the_same_texts(backend: RecordingBackend, name: str) -> None:
    direct: Callable[[Any], Any] = backend.direct
    numpy_backend = NumpyBackend(resolve(lambda tokens: np.asarray(direct(tokens))), MAX_LENGTH)
    evaluator = Evaluator(TokenizerAdapter(Alphabet(EOS)), numpy_backend, MAX_LENGTH)

    assert generate(evaluator, OPTIONS[name]) == generate(evaluator_of(backend, EOS), OPTIONS[name])


def test_tokens_of_a_cached_prefix_count(backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "budget", dataclasses.replace(backend.budget, call_tokens=4))
    prompts = [(LETTERS[5:] * 3)[:96] + letter * 10 for letter in "abcdef"]
    logits = OPTIONS["repetition"]

    evaluator = evaluator_of(backend, EOS)
    texts = generate(evaluator, logits, prompts)

    assert texts == [plain_text(backend, prompt, logits) for prompt in prompts]
    report = evaluator.report
    assert report.tokens_computed - report.tokens_padding < 2 * 96 + 6 * 9 + 6 * COUNT, "the prefix is computed once"


def test_generated_tokens_count_after_an_out_of_memory_step(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = LogitsParams(presence_penalty=3.0, repetition_penalty=1.2, min_new_tokens=5)
    expected = [plain_text(backend, prompt, logits) for prompt in PROMPTS]
    decode, calls = JaxDecoding.decode, 0

    def failing(self: JaxDecoding, active: Any) -> NextTokens:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OutOfDeviceMemory("out of memory")
        return decode(self, active)

    monkeypatch.setattr(JaxDecoding, "decode", failing)

    assert generate(evaluator_of(backend, EOS), logits) == expected
    assert calls > 3


def test_plain_generation_compiles_the_same_executables_as_ever(backend: RecordingBackend) -> None:
    plain = RecordingBackend(dataclasses.replace(backend._model.functions, params=backend._model.params))
    generate(evaluator_of(plain, EOS), None)
    before = set(plain._model.executables._executables)

    generate(evaluator_of(plain, EOS), OPTIONS["repetition"])
    generate(evaluator_of(plain, EOS), OPTIONS["counts"])

    added = set(plain._model.executables._executables) - before
    assert {len(key) for key in before if key[0] == "decode"} == {5}
    # The first token of an answer is chosen by the prefill.
    assert {key[0] for key in added} <= {"decode", "put-history", "narrow-history", "processed-False-True"}
    assert all(key[5:] == ("processed", True) for key in added if key[0] == "decode")


def test_an_eos_token_of_the_request_belongs_to_the_answer(backend: RecordingBackend) -> None:
    whole = generate(evaluator_of(backend), None)
    letter = whole[0][3]
    own = evaluator_of(backend, LETTERS.index(letter))

    ended = generate(evaluator_of(backend), LogitsParams(eos_token_id=(LETTERS.index(letter),)))

    assert ended == [text[: text.index(letter) + 1] if letter in text else text for text in whole]
    assert generate(own, None) == [text.split(letter)[0] for text in whole]
    assert generate(own, LogitsParams(ignore_eos=True)) == whole


def test_a_token_that_the_model_does_not_have_is_named(backend: RecordingBackend) -> None:
    with pytest.raises(RequestError, match=f"the token {VOCABULARY} in suppress_tokens"):
        generate(evaluator_of(backend, EOS), LogitsParams(suppress_tokens=(VOCABULARY,)))


def test_generation_without_eos_is_warned_of(backend: RecordingBackend) -> None:
    work = GenerateWork(prompts=["a"], settings=GenerationParams(max_gen_toks=2))

    _, notices = texts_and_notices(evaluator_of(backend), work)

    assert [notice for notice in notices if "has no EOS token" in notice]
