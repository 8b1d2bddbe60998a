"""Sampling parameters parsed from generation_kwargs, after lm_eval has normalized them."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.models.utils import normalize_gen_kwargs

from birdie_zmq.errors import UnsupportedRequest, UsageError
from birdie_zmq.harness import generation_kwargs
from birdie_zmq.harness.generation_kwargs import parse_sampling_params
from birdie_zmq.types import SamplingParams


def read(**gen_kwargs: Any) -> SamplingParams | None:
    return parse_sampling_params(dict(normalize_gen_kwargs(gen_kwargs, 256)))


@pytest.mark.parametrize(
    "gen_kwargs",
    [
        {},
        {"do_sample": False},
        {"temperature": 0.0},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": True, "temperature": 0.0},  # lm_eval itself warns about this one
        {"do_sample": True},
        {"num_beams": 1, "repetition_penalty": 1.0},
    ],
)
def test_decoding_is_greedy_without_a_temperature(gen_kwargs: dict[str, Any]) -> None:
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
def test_temperature_gives_sampling_params(gen_kwargs: dict[str, Any], expected: SamplingParams) -> None:
    assert read(**gen_kwargs) == expected


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
        read(do_sample=True, **gen_kwargs)


@pytest.mark.parametrize("option", [{"num_beams": 4}, {"repetition_penalty": 1.2}, {"presence_penalty": 0.5}])
def test_unsupported_generation_option_is_rejected(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(
        UnsupportedRequest, match=f"{name}={value}, which is not supported; run with --gen_kwargs {name}="
    ):
        read(**option)


def test_unknown_generation_kwarg_is_warned_about_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_kwargs, "_warned", set())

    for _ in range(2):
        assert read(until=["\n"], colour="blue") is None

    assert [record.getMessage() for record in caplog.records] == [
        "generation_kwargs contain the unknown option colour='blue'; it is ignored"
    ]
