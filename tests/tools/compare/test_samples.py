"""Reading lines of a samples file, valid and invalid ones."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.compare.samples import Sample, read_sample
from tests.tools.compare.lines import choice, generated, line, rolling


def read(what: dict[str, Any]) -> Sample:
    return read_sample(json.dumps(what))


def test_choices_have_a_score_and_a_greedy_flag() -> None:
    sample = read(choice(3, [-2.5, -0.5, -4], [False, True, False], acc=1.0, metrics=["acc"]))

    assert (sample.kind, sample.doc_id, sample.filter) == ("loglikelihood", "3", "none")
    assert sample.loglikelihoods == (-2.5, -0.5, -4.0)
    assert sample.greedy == (False, True, False)
    assert sample.top_choice == 1
    assert sample.metrics == (("acc", 1.0),)


def test_null_and_nan_are_never_the_top_choice() -> None:
    sample = read(choice(0, [None, "nan", -9, "-inf"]))

    assert [math.isnan(score) for score in sample.loglikelihoods] == [True, True, False, False]
    assert sample.top_choice == 2


def test_rolling_sample_has_one_score_and_no_choice() -> None:
    sample = read(rolling(1, -123.5))

    assert (sample.kind, sample.loglikelihoods, sample.greedy, sample.top_choice) == ("rolling", (-123.5,), (), None)


@pytest.mark.parametrize("text", ["True", "-1.5", "nan", "[1, 2]", ""])
def test_generated_text_like_a_number_stays_text(text: str) -> None:
    sample = read(generated(1, text))

    assert (sample.kind, sample.texts, sample.loglikelihoods) == ("generate", (text,), ())


def test_all_repeats_are_read() -> None:
    assert read(generated(1, "a", "b")).texts == ("a", "b")


def test_answers_without_context_are_not_choices() -> None:
    """acc_mutual_info scores each answer again without the question."""
    requests = [["q", " a"], ["q", " b"], ["", " a"], ["", " b"]]

    sample = read(line(0, requests, [[["-3", "False"]], [["-2", "False"]], [["-1", "False"]], [["-9", "False"]]]))

    assert sample.top_choice == 1


def test_request_hash_covers_generation_settings() -> None:
    one, other = generated(1, "a"), generated(1, "a")
    other["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] = 9

    assert read(one).request_hash == read(generated(1, "b")).request_hash
    assert read(one).request_hash != read(other).request_hash


def test_samples_without_arguments_are_read_by_response_type() -> None:
    for made in (choice(0, [-1.0, -2.0]), generated(0, "a")):
        expected = read(made)
        del made["arguments"]
        assert read(made).kind == expected.kind
        assert read(made).loglikelihoods == expected.loglikelihoods


@pytest.mark.parametrize("text", ["", "[]", "{}", "nothing", '{"doc_id": 1, "resps": [[["x", "True"]]]}', "[" * 10_000])
def test_invalid_sample_line_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="not a line of an lm_eval samples file"):
        read_sample(text)
