"""What a line of samples says, and lines that say nothing."""

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


def test_choices_have_a_score_and_a_flag_each() -> None:
    sample = read(choice(3, [-2.5, -0.5, -4], [False, True, False], acc=1.0, metrics=["acc"]))

    assert (sample.kind, sample.doc_id, sample.filter) == ("loglikelihood", "3", "none")
    assert sample.loglikelihoods == (-2.5, -0.5, -4.0)
    assert sample.greedy == (False, True, False)
    assert sample.chosen == 1
    assert sample.metrics == (("acc", 1.0),)


def test_null_and_nan_are_no_numbers_and_never_chosen() -> None:
    sample = read(choice(0, [None, "nan", -9, "-inf"]))

    assert [math.isnan(score) for score in sample.loglikelihoods] == [True, True, False, False]
    assert sample.chosen == 2


def test_a_rolling_task_has_one_number_and_no_choice() -> None:
    sample = read(rolling(1, -123.5))

    assert (sample.kind, sample.loglikelihoods, sample.greedy, sample.chosen) == ("rolling", (-123.5,), (), None)


@pytest.mark.parametrize("text", ["True", "-1.5", "nan", "[1, 2]", ""])
def test_a_generated_text_that_looks_like_a_number_stays_a_text(text: str) -> None:
    sample = read(generated(1, text))

    assert (sample.kind, sample.texts, sample.loglikelihoods) == ("generate", (text,), ())


def test_repeats_are_all_there() -> None:
    assert read(generated(1, "a", "b")).texts == ("a", "b")


def test_answers_without_a_context_are_not_chosen_from() -> None:
    """acc_mutual_info asks for each answer once more without the question."""
    asked = [["q", " a"], ["q", " b"], ["", " a"], ["", " b"]]

    sample = read(line(0, asked, [[["-3", "False"]], [["-2", "False"]], [["-1", "False"]], [["-9", "False"]]]))

    assert sample.chosen == 1


def test_what_was_asked_tells_settings_and_prompts_apart() -> None:
    one, other = generated(1, "a"), generated(1, "a")
    other["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] = 9

    assert read(one).asked == read(generated(1, "b")).asked
    assert read(one).asked != read(other).asked


def test_samples_without_arguments_are_read_by_their_form() -> None:
    for made in (choice(0, [-1.0, -2.0]), generated(0, "a")):
        expected = read(made)
        del made["arguments"]
        assert read(made).kind == expected.kind
        assert read(made).loglikelihoods == expected.loglikelihoods


@pytest.mark.parametrize("text", ["", "[]", "{}", "nothing", '{"doc_id": 1, "resps": [[["x", "True"]]]}', "[" * 10_000])
def test_a_line_that_is_no_sample_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no line of lm_eval's samples"):
        read_sample(text)
