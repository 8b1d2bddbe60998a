"""The settings of a generation: EOS tokens, the checkpoint's generation_config.json, and what is said about them."""

from __future__ import annotations

from typing import Any

import pytest

from birdie_zmq.engine.backend import TokenChoice
from birdie_zmq.engine.detokenizer import StopConditions
from birdie_zmq.engine.generation_settings import GenerationSettings, generation_settings
from birdie_zmq.engine.logits_processing import LogitsProcessing
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import RequestError
from birdie_zmq.types import GenerationParams, LogitsParams, SamplingParams

VOCABULARY = 20


class Tokens:
    """A tokenizer with one EOS token of its own and a further one of its checkpoint."""

    bos_token_id = 0
    eos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (1, 2)

    def __init__(self, generation_config: Any = None) -> None:
        self.generation_config = generation_config

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class WithoutEos(Tokens):
    eos_token_id = None
    eos_token_ids = ()


def settings_for(
    tokenizer: Tokens | None = None,
    sampling: SamplingParams | None = None,
    given: tuple[str, ...] | None = None,
    **logits: Any,
) -> GenerationSettings:
    params = GenerationParams(
        sampling=sampling,
        logits=LogitsParams(**logits) if logits else None,
        given=tuple(logits) if given is None else given,
    )
    return generation_settings(params, TokenizerAdapter(tokenizer or Tokens()), VOCABULARY)


def test_plain_parameters_process_nothing() -> None:
    assert settings_for() == GenerationSettings(TokenChoice(), StopConditions(frozenset({1, 2}), 256, frozenset()), ())


@pytest.mark.parametrize(
    ("logits", "ends", "kept"),
    [
        ({"eos_token_id": (5, 6)}, {1, 5, 6}, {5, 6}),  # hf still stops at the text of the tokenizer's own EOS
        ({"eos_token_id": (2,)}, {1, 2}, set()),
        ({"stop_token_ids": (7, 1)}, {1, 2, 7}, {7}),
        ({"ignore_eos": True}, set(), set()),
        ({"ignore_eos": True, "stop_token_ids": (7,)}, {7}, {7}),
        ({"eos_token_id": ()}, {1}, set()),
    ],
)
def test_tokens_that_end_an_answer(logits: dict[str, Any], ends: set[int], kept: set[int]) -> None:
    found = settings_for(**logits)

    assert set(found.stop.eos_token_ids) == ends
    assert set(found.stop.kept_token_ids) == kept
    assert not found.notices


def test_options_become_one_processing() -> None:
    found = settings_for(
        suppress_tokens=(3,),
        bad_words_ids=(4, 2),
        begin_suppress_tokens=(5,),
        sequence_bias=((6, 1.0),),
        logit_bias=((7, 2.0),),
        min_new_tokens=3,
        min_length=4,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )

    assert found.choice.processing == LogitsProcessing(
        bias=((6, 1.0), (7, 2.0)),
        forbidden=(3, 4),  # an EOS token is no bad word, as in transformers
        forbidden_first=(5,),
        end_tokens=(1, 2),
        min_new_tokens=3,
        min_length=4,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )


def test_a_minimum_without_any_end_token_changes_nothing() -> None:
    assert settings_for(ignore_eos=True, min_new_tokens=3).choice.processing is None


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(RequestError, match="the token 20 in suppress_tokens, but the model has logits for 20 tokens"):
        settings_for(suppress_tokens=(3, 20))


@pytest.mark.parametrize("logits", [{}, {"min_new_tokens": 2}])
def test_a_tokenizer_without_eos_is_warned_of(logits: dict[str, Any]) -> None:
    (notice,) = settings_for(WithoutEos(), **logits).notices

    assert notice.level == "warning"
    assert "ends only at a stop string or after max_gen_toks tokens" in notice.text


@pytest.mark.parametrize("logits", [{"eos_token_id": (3,)}, {"stop_token_ids": (3,)}, {"ignore_eos": True}])
def test_a_request_with_its_own_end_is_not_warned_of(logits: dict[str, Any]) -> None:
    assert not settings_for(WithoutEos(), **logits).notices


CONFIG = {
    "repetition_penalty": 1.3,
    "suppress_tokens": [3, 25],  # transformers ignores a token that the model does not have
    "bad_words_ids": [[4]],
    "sequence_bias": [[[5], -1.0]],
    "min_new_tokens": 2,
    "no_repeat_ngram_size": 0,
    "max_length": 4096,
    "eos_token_id": [1, 2],
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "transformers_version": "5.24.0",
}


def test_the_checkpoints_options_apply_to_greedy_texts() -> None:
    found = settings_for(Tokens(CONFIG))

    assert found.choice.sampling is None
    assert found.choice.processing == LogitsProcessing(
        bias=((5, -1.0),), forbidden=(3, 4), end_tokens=(1, 2), min_new_tokens=2, repetition_penalty=1.3
    )
    (notice,) = found.notices
    assert notice.level == "info"
    assert "repetition_penalty=1.3" in notice.text
    assert "temperature" not in notice.text


def test_a_request_takes_precedence_over_the_checkpoint() -> None:
    given = ("bad_words_ids", "min_tokens", "repetition_penalty", "sequence_bias", "suppress_tokens")

    found = settings_for(Tokens(CONFIG), given=given, sequence_bias=((6, 1.0),))

    assert found.choice.processing == LogitsProcessing(bias=((6, 1.0),))
    assert not found.notices


def test_the_checkpoints_sampling_options_apply_to_sampled_requests_that_leave_them_out() -> None:
    config = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.0}

    found = settings_for(Tokens(config), sampling=SamplingParams(temperature=2.0), given=("temperature",))

    assert found.choice.sampling == SamplingParams(temperature=2.0, top_k=20, top_p=0.9)


@pytest.mark.parametrize(
    ("config", "sampled"),
    [
        ({"num_beams": 4}, False),
        ({"no_repeat_ngram_size": 3}, False),
        ({"typical_p": 0.5}, True),
        ({"sequence_bias": [[[5, 6], -1.0]]}, False),
        ({"sequence_bias": [[[25], -1.0]]}, False),
        ({"repetition_penalty": "much"}, False),
        ({"top_p": 3.0}, True),
    ],
)
def test_what_is_not_applied_is_warned_of_by_name_and_value(config: dict[str, Any], sampled: bool) -> None:
    found = settings_for(Tokens(config), sampling=SamplingParams() if sampled else None, given=())

    ((name, value),) = config.items()
    (notice,) = found.notices
    assert notice.level == "warning"
    assert f"sets {name}={value!r}, which hf applies and birdie-zmq does not" in notice.text
    assert found.choice.processing is None


def test_a_neutral_value_of_the_request_silences_the_warning() -> None:
    assert not settings_for(Tokens({"num_beams": 4}), given=("num_beams",)).notices
    assert not settings_for(Tokens({"typical_p": 0.5, "num_beams": 1, "top_p": None})).notices


def test_another_attribute_of_that_name_is_ignored() -> None:
    assert not settings_for(Tokens(generation_config="file.json")).notices
