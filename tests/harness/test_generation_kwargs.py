"""What generation_kwargs say of how tokens are chosen, after lm_eval has normalised them."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.models.utils import normalize_gen_kwargs

from birdie_zmq.errors import UnsupportedRequest, UsageError
from birdie_zmq.harness import generation_kwargs
from birdie_zmq.harness.generation_kwargs import read_sampling
from birdie_zmq.types import SamplingParams


def read(**gen_kwargs: Any) -> SamplingParams | None:
    return read_sampling(dict(normalize_gen_kwargs(gen_kwargs, 256)))


@pytest.mark.parametrize(
    "gen_kwargs",
    [
        {},
        {"do_sample": False},
        {"temperature": 0.0},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": True, "temperature": 0.0},  # lm_eval itself warns of this one
        {"do_sample": True},
        {"num_beams": 1, "repetition_penalty": 1.0},
    ],
)
def test_without_a_temperature_the_most_likely_token_is_taken(gen_kwargs: dict[str, Any]) -> None:
    assert read(**gen_kwargs) is None


@pytest.mark.parametrize(
    ("gen_kwargs", "expected"),
    [
        ({"temperature": 0.7}, SamplingParams(temperature=0.7)),
        ({"do_sample": True, "temperature": 1}, SamplingParams()),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1},
            SamplingParams(temperature=0.5, top_p=0.9, top_k=40, min_p=0.1),
        ),
        ({"temperature": "0.5", "top_k": "40"}, SamplingParams(temperature=0.5, top_k=40)),
        ({"temperature": 1.0, "top_k": -1, "top_p": None}, SamplingParams()),
    ],
)
def test_a_temperature_draws_tokens(gen_kwargs: dict[str, Any], expected: SamplingParams) -> None:
    assert read(**gen_kwargs) == expected


@pytest.mark.parametrize(
    ("gen_kwargs", "said"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"temperature": 1.0, "top_k": 2.5}, "top_k=2.5"),
        ({"temperature": 1.0, "min_p": "much"}, "min_p=much"),
    ],
)
def test_an_impossible_limit_is_named(gen_kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"tokens cannot be drawn by .*{said}"):
        read(do_sample=True, **gen_kwargs)


@pytest.mark.parametrize("asked", [{"num_beams": 4}, {"repetition_penalty": 1.2}, {"presence_penalty": 0.5}])
def test_what_would_change_the_answer_and_is_not_there_is_refused(asked: dict[str, Any]) -> None:
    ((name, value),) = asked.items()
    with pytest.raises(
        UnsupportedRequest, match=f"{name}={value}, which is not supported; run with --gen_kwargs {name}="
    ):
        read(**asked)


def test_a_word_without_a_meaning_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_kwargs, "_warned", set())

    for _ in range(2):
        assert read(until=["\n"], colour="blue") is None

    assert [record.getMessage() for record in caplog.records] == [
        "generation_kwargs hold colour='blue', which means nothing here and is left out"
    ]
