"""Generation and sampling parameters parsed from the generation_kwargs of a task."""

from __future__ import annotations

from typing import Any

import pytest

from birdie_zmq.errors import UnsupportedRequest, UsageError
from birdie_zmq.generation_options import NO_EFFECT, UNSUPPORTED
from birdie_zmq.harness import generation_kwargs
from birdie_zmq.harness.generation_kwargs import parse_generation_params
from birdie_zmq.types import GenerationParams, LogitsParams, SamplingParams


def parse(**gen_kwargs: Any) -> GenerationParams:
    return parse_generation_params(gen_kwargs, 256, None)


@pytest.mark.parametrize(
    "gen_kwargs",
    [
        {},
        {"do_sample": False},
        {"temperature": 0.0},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": False, "temperature": 0.0},
        {"do_sample": None, "temperature": None, "top_k": 5},
        {"num_beams": 1, "repetition_penalty": 1.0},
    ],
)
def test_decoding_is_greedy_without_a_temperature(gen_kwargs: dict[str, Any]) -> None:
    assert parse(**gen_kwargs).sampling is None


@pytest.mark.parametrize(
    ("gen_kwargs", "expected"),
    [
        ({"temperature": 0.7}, SamplingParams(temperature=0.7)),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        ({"do_sample": True, "temperature": None, "top_k": 3}, SamplingParams(temperature=1.0, top_k=3)),
        ({"do_sample": True, "temperature": 1}, SamplingParams()),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1},
            SamplingParams(temperature=0.5, top_p=0.9, top_k=40, min_p=0.1),
        ),
        ({"temperature": "0.5", "top_k": "40"}, SamplingParams(temperature=0.5, top_k=40)),
        ({"temperature": 1.0, "top_k": -1, "top_p": None}, SamplingParams()),
    ],
)
def test_a_temperature_or_do_sample_samples(gen_kwargs: dict[str, Any], expected: SamplingParams) -> None:
    assert parse(**gen_kwargs).sampling == expected


@pytest.mark.parametrize("temperature", [0, 0.0, "0"])
def test_do_sample_contradicts_a_temperature_of_zero(temperature: Any) -> None:
    with pytest.raises(UsageError, match=r"do_sample=True contradicts temperature=0"):
        parse(do_sample=True, temperature=temperature)


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"temperature": 1.0, "top_k": 2.5}, "top_k=2.5"),
        ({"temperature": 1.0, "min_p": "much"}, "min_p=much"),
    ],
)
def test_invalid_sampling_value_is_named(gen_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"invalid sampling parameters .*{message}"):
        parse(do_sample=True, **gen_kwargs)


@pytest.mark.parametrize(
    ("gen_kwargs", "expected"),
    [
        ({"min_new_tokens": 6}, LogitsParams(min_new_tokens=6)),
        ({"min_tokens": "6"}, LogitsParams(min_new_tokens=6)),
        ({"min_tokens": 3, "min_new_tokens": 2}, LogitsParams(min_new_tokens=3)),
        ({"min_length": 9}, LogitsParams(min_length=9)),
        ({"eos_token_id": 4}, LogitsParams(eos_token_id=(4,))),
        ({"eos_token_id": [4, 5]}, LogitsParams(eos_token_id=(4, 5))),
        ({"stop_token_ids": [7], "ignore_eos": True}, LogitsParams(stop_token_ids=(7,), ignore_eos=True)),
        ({"suppress_tokens": [1, 2]}, LogitsParams(suppress_tokens=(1, 2))),
        ({"begin_suppress_tokens": [1]}, LogitsParams(begin_suppress_tokens=(1,))),
        ({"bad_words_ids": [[3], [4]]}, LogitsParams(bad_words_ids=(3, 4))),
        ({"sequence_bias": [[[3], -2.0], [[1], 1.5]]}, LogitsParams(sequence_bias=((1, 1.5), (3, -2.0)))),
        ({"sequence_bias": {(3,): -2.0}}, LogitsParams(sequence_bias=((3, -2.0),))),
        ({"logit_bias": {"9": -100, "2": 1}}, LogitsParams(logit_bias=((2, 1.0), (9, -100.0)))),
        (
            {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5},
            LogitsParams(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=-0.5),
        ),
    ],
)
def test_options_of_logits_and_eos_tokens_are_parsed(gen_kwargs: dict[str, Any], expected: LogitsParams) -> None:
    params = parse(**gen_kwargs)

    assert params.logits == expected
    assert params.given == tuple(sorted(gen_kwargs))


@pytest.mark.parametrize(
    "gen_kwargs", [{"repetition_penalty": 1}, {"min_length": 0}, {"suppress_tokens": []}, {"suppress_tokens": None}]
)
def test_neutral_options_change_no_logits(gen_kwargs: dict[str, Any]) -> None:
    assert parse(**gen_kwargs).logits is None


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty=0 is invalid"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1 is invalid"),
        ({"suppress_tokens": ["a"]}, r"suppress_tokens=\['a'\] is invalid"),
        ({"suppress_tokens": [-1]}, r"suppress_tokens=\[-1\] is invalid"),
        ({"logit_bias": {"a": 1}}, "logit_bias=.* is invalid"),
        ({"logit_bias": {"1": float("nan")}}, "logit_bias=.*nan.* is invalid"),
        ({"sequence_bias": [[[], 1.0]]}, "sequence_bias=.* is invalid"),
        ({"eos_token_id": {}.items}, "eos_token_id=.* is invalid"),
        ({"until": [1]}, r"until=\[1\]"),
        ({"max_gen_toks": "many"}, "invalid number of generated tokens .*many"),
        ({"max_gen_toks": 0}, "must be at least 1, not 0"),
    ],
)
def test_invalid_value_is_named(gen_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(**gen_kwargs)


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"num_beams": 4}, "num_beams=4, which is not supported; run with --gen_kwargs num_beams=1 to turn it off"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3, .* no_repeat_ngram_size=0 to turn it off"),
        ({"max_length": 20}, "max_length=20, .*; set the number of generated tokens with max_gen_toks=N"),
        ({"stop_strings": ["a"]}, "stop_strings=.*; set stop strings with until"),
        (
            {"exponential_decay_length_penalty": [1, 2.0]},
            "exponential_decay.*; remove exponential_decay_length_penalty from",
        ),
        ({"guided_json": {}}, "guided_json={}"),
        ({"skip_special_tokens": False}, "skip_special_tokens=False"),
        ({"bad_words_ids": [[1, 2]]}, "bad_words_ids=.* has a sequence of several tokens"),
        ({"sequence_bias": [[[1, 2], 1.0]]}, "sequence_bias=.* has a sequence of several tokens"),
        ({"temperature": 1.0, "typical_p": 0.5}, "typical_p=0.5"),
        ({"do_sample": True, "seed": 3}, "seed=3, .*; set seed=N in model_args"),
    ],
)
def test_unsupported_option_is_rejected_by_name(gen_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedRequest, match=f"the task requests {message}"):
        parse(**gen_kwargs)


def test_neutral_and_ineffective_options_are_accepted_silently(caplog: pytest.LogCaptureFixture) -> None:
    neutral = {name: value for name, values in UNSUPPORTED.items() for value in values}

    params = parse(**neutral, **dict.fromkeys(NO_EFFECT, True), **dict.fromkeys(UNSUPPORTED.keys() - neutral.keys()))

    assert params == GenerationParams(given=tuple(sorted(neutral)))
    assert not caplog.records


def test_options_of_sampling_do_not_concern_greedy_texts() -> None:
    assert parse(typical_p=0.5, seed=1, do_sample=False).sampling is None


def test_only_options_that_have_an_effect_are_named_as_given() -> None:
    assert parse(do_sample=False, temperature=0.0, until=["a"], max_gen_toks=4, use_cache=True).given == ()
    assert parse(temperature=0.5, top_k=1).given == ("temperature", "top_k")


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_names_of_the_length_are_those_of_lm_eval(name: str) -> None:
    assert parse(**{name: 7}).max_gen_toks == 7


def test_unknown_generation_kwarg_is_warned_about_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_kwargs, "_warned", set())

    for _ in range(2):
        assert parse(until=["\n"], colour="blue").sampling is None

    assert [record.getMessage() for record in caplog.records] == [
        "generation_kwargs contain the unknown option colour='blue'; it is ignored"
    ]
