"""The tables of generation options cover transformers' GenerationConfig and vLLM's SamplingParams."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest

from birdie_zmq.generation_options import (
    COMPUTED,
    INSTEAD,
    NO_EFFECT,
    UNSUPPORTED,
    UnsupportedOption,
    is_neutral,
    largest_token_ids,
    read_logits_option,
    tokens_outside,
)
from birdie_zmq.types import GenerationParams, LogitsParams

GenerationConfig: Any = importlib.import_module("transformers").GenerationConfig

TABLES = (COMPUTED, frozenset(UNSUPPORTED), NO_EFFECT)

VLLM = """n best_of presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop
stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs flat_logprobs detokenize skip_special_tokens
spaces_between_special_tokens include_stop_str_in_output logits_processors truncate_prompt_tokens output_kind skip_clone
structured_outputs guided_decoding logit_bias allowed_token_ids extra_args bad_words skip_reading_prefix_cache
thinking_token_budget repetition_detection"""
"""The fields of vLLM's SamplingParams, which the tests cannot import."""


def test_no_option_is_in_two_tables() -> None:
    assert not any(one & other for one, other in itertools.combinations(TABLES, 2))
    assert INSTEAD.keys() <= UNSUPPORTED.keys()


@pytest.mark.parametrize("name", [*vars(GenerationConfig()), *VLLM.split()])
def test_each_option_of_transformers_and_vllm_is_in_a_table(name: str) -> None:
    assert sum(name in table for table in TABLES) == 1


def test_the_defaults_of_transformers_are_neutral() -> None:
    defaults = GenerationConfig()._get_default_generation_params()
    unsupported = {name: value for name, value in defaults.items() if name in UNSUPPORTED and name != "max_length"}

    assert all(is_neutral(name, value, sampled=True) for name, value in unsupported.items())
    assert len(unsupported) > 8


def test_a_value_that_changes_sampled_texts_alone_is_neutral_for_greedy_ones() -> None:
    assert is_neutral("typical_p", 0.5, sampled=False)
    assert not is_neutral("typical_p", 0.5, sampled=True)
    assert not is_neutral("num_beams", 2, sampled=False)


def test_several_tokens_are_told_from_invalid_values() -> None:
    with pytest.raises(UnsupportedOption, match="bad_words_ids"):
        read_logits_option("bad_words_ids", [[1, 2]])
    with pytest.raises(ValueError, match="bad_words_ids=7 is invalid") as error:
        read_logits_option("bad_words_ids", 7)
    assert not isinstance(error.value, UnsupportedOption)


def test_tokens_outside_the_vocabulary_are_named() -> None:
    logits = LogitsParams(suppress_tokens=(1, 9), logit_bias=((12, 1.0),), eos_token_id=(2,))

    assert largest_token_ids(logits) == {"suppress_tokens": 9, "logit_bias": 12, "eos_token_id": 2}
    settings = GenerationParams(logits=logits)
    assert not tokens_outside(settings, 13)
    assert not tokens_outside(settings, 0)
    assert not tokens_outside(GenerationParams(), 1)
    assert tokens_outside(settings, 9) == "the token 9 in suppress_tokens, the token 12 in logit_bias"
