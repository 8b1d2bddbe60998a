"""A run agrees with a shuffled copy of itself, and every injected difference is found."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.tools.compare.comparing import MAX_POINTS, TaskReport, compare_task, difference, first_difference
from birdie_zmq.tools.compare.samples import Sample, read_sample
from tests.tools.compare.lines import choice, generated, line, rolling

SCORES = st.floats(-1e4, 0, allow_nan=False) | st.sampled_from([math.nan, -math.inf])


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    """Generate a run of one task of any kind, with one or two filters."""
    filters = draw(st.sampled_from([["none"], ["strict", "flexible"]]))
    kind = draw(st.sampled_from(["choice", "rolling", "generate"]))
    lines: list[dict[str, Any]] = []
    for doc_id in range(draw(st.integers(1, 8))):
        if kind == "choice":
            one = choice(doc_id, draw(st.lists(SCORES, min_size=1, max_size=4)))
        elif kind == "rolling":
            one = rolling(doc_id, draw(SCORES))
        else:
            one = generated(doc_id, *draw(st.lists(st.text(max_size=6), min_size=1, max_size=3)))
        lines += [{**one, "filter": name} for name in filters]
    return [read_sample(json.dumps(one)) for one in lines]


@given(samples(), st.randoms())
def test_shuffled_run_agrees_with_itself(run: list[Sample], random: Any) -> None:
    copy = list(run)
    random.shuffle(copy)

    report = compare_task("task", run, copy, threshold=0.0)

    assert report.agrees
    assert report.compared == len(run)
    assert (report.max_difference, report.flips, report.texts, report.worst) == (0.0, [], [], [])


@given(samples(), st.data())
def test_any_single_difference_is_found(run: list[Sample], data: st.DataObject) -> None:
    # Lines of further filters repeat the responses of the first one; only their metrics are compared.
    at = data.draw(st.sampled_from([i for i, one in enumerate(run) if one.filter == run[0].filter]))
    sample = run[at]
    if sample.texts:
        i = data.draw(st.integers(0, len(sample.texts) - 1))
        changed = dataclasses.replace(sample, texts=(*sample.texts[:i], sample.texts[i] + "!", *sample.texts[i + 1 :]))
    else:
        i = data.draw(st.integers(0, len(sample.loglikelihoods) - 1))
        old = sample.loglikelihoods[i]
        new = old - 1.0 if math.isfinite(old) else -1.0
        changed = dataclasses.replace(
            sample, loglikelihoods=(*sample.loglikelihoods[:i], new, *sample.loglikelihoods[i + 1 :])
        )
    copy = data.draw(st.permutations([*run[:at], changed, *run[at + 1 :]]))

    report = compare_task("task", run, copy, threshold=0.5)

    assert not report.agrees
    if sample.texts:
        assert [pair.doc_id for pair in report.texts] == [sample.doc_id]
    else:
        assert report.over_threshold == 1
        assert (report.worst[0].doc_id, report.worst[0].response) == (sample.doc_id, i)


@given(samples(), st.data())
def test_sample_missing_in_one_run_is_named(run: list[Sample], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(run) - 1))
    rest = [*run[:at], *run[at + 1 :]]

    for report in (compare_task("task", run, rest), compare_task("task", rest, run)):
        assert not report.agrees
        (name,) = report.missing_in_b or report.missing_in_a
        assert name.split()[0] == run[at].doc_id
    assert compare_task("task", run, rest).missing_in_a == []


def compared(a: list[dict[str, Any]], b: list[dict[str, Any]], **options: Any) -> TaskReport:
    one, other = ([read_sample(json.dumps(each)) for each in run] for run in (a, b))
    return compare_task("task", one, other, **options)


def test_flips_name_their_document() -> None:
    a = [choice(0, [-1, -2]), choice(1, [-1.0, -1.1]), choice(2, [-1], [True])]
    b = [choice(0, [-1, -2]), choice(1, [-1.1, -1.0]), choice(2, [-1], [False])]

    report = compared(a, b, threshold=1.0)

    assert report.over_threshold == 0
    assert [(flip.doc_id, flip.what) for flip in report.flips] == [
        ("1", "the top choice is 0 in A and 1 in B"),
        ("2", "is_greedy of response 0 is True in A and False in B"),
    ]
    assert not report.agrees


def test_metric_correct_in_one_run_only_is_a_flip() -> None:
    a = generated(0, "12", filter="strict", metrics=["exact_match"], exact_match=1.0)

    report = compared([a], [{**a, "exact_match": 0.0}])

    assert [(flip.doc_id, flip.what) for flip in report.flips] == [("0 (strict)", "exact_match is 1 in A and 0 in B")]


def test_perplexity_differences_are_not_flips() -> None:
    a = rolling(0, -10.0, metrics=["perplexity", "bits"], perplexity=[-10.0, 7], bits=0.5)

    assert compared([a], [{**a, "perplexity": [-10.1, 7], "bits": 0.6}]).agrees


def test_differences_are_in_nats_over_all_responses() -> None:
    report = compared([choice(0, [-1.0, -2.0]), choice(1, [-3.0])], [choice(0, [-1.5, -2.0]), choice(1, [-2.75])])

    assert (report.responses, report.max_difference, report.mean_difference) == (3, 0.5, 0.25)
    assert [(one.doc_id, one.response, one.difference) for one in report.worst] == [("0", 0, 0.5), ("1", 0, 0.25)]
    assert report.over_threshold == 2


def test_only_the_largest_differences_are_listed() -> None:
    a = [rolling(i, -10.0) for i in range(30)]
    b = [rolling(i, -10.0 - i) for i in range(30)]

    report = compared(a, b, max_worst=2)

    assert [one.doc_id for one in report.worst] == ["29", "28"]
    assert report.over_threshold == 29


def test_difference_from_null_is_infinite_and_not_in_the_mean() -> None:
    report = compared([choice(0, [None, -1.0])], [choice(0, [-2.0, -1.5])])

    assert math.isinf(report.max_difference)
    assert report.mean_difference == 0.5


def test_responses_are_compared_for_the_first_filter_only() -> None:
    a = [{**generated(i, "a"), "filter": name} for name in ("strict", "flexible") for i in range(2)]

    report = compared(a, list(reversed(a)))

    assert (report.compared, report.responses) == (4, 2)


def test_differing_texts_report_the_position() -> None:
    report = compared([generated(4, "x" * 100 + "cat")], [generated(4, "x" * 100 + "car and more")])

    (pair,) = report.texts
    assert (pair.doc_id, pair.position) == ("4", 102)
    assert (pair.a, pair.b) == ("x" * 38 + "cat", "x" * 38 + "car and more")
    assert first_difference("ab", "abc") == 2


def test_different_document_or_request_is_not_compared() -> None:
    a = choice(0, [-1.0])
    another_document = {**a, "doc_hash": "f" * 64}
    another_question = choice(0, [-9.0])
    another_question["arguments"]["gen_args_0"]["arg_0"] = "with an example before it"

    other_document, other_request = compared([a], [another_document]), compared([a], [another_question])

    assert (other_document.missing_in_a, other_document.missing_in_b) == (["0"], ["0"])
    assert (other_request.request_changed, other_request.compared, other_request.agrees) == (["0"], 0, False)


def test_a_different_number_of_responses_is_a_difference() -> None:
    two = line(0, [["q", " a"]], [[["-1", "True"], ["-1", "True"]]])

    assert not compared([two], [line(0, [["q", " a"]], [[["-1", "True"]]])]).agrees


def test_plot_points_are_bounded() -> None:
    run = [rolling(i, -float(i)) for i in range(MAX_POINTS + 10)]

    report = compared(run, run)

    assert len(report.points) <= MAX_POINTS
    assert report.points_stride == 2
    assert report.points[:2] == [(0.0, 0.0), (-2.0, -2.0)]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (-1.0, -3.0, 2.0),
        (math.nan, math.nan, 0.0),
        (-math.inf, -math.inf, 0.0),
        (math.nan, -1.0, math.inf),
        (-1.0, -math.inf, math.inf),
        (math.nan, -math.inf, math.inf),
    ],
)
def test_differences_of_nan_and_infinity(a: float, b: float, expected: float) -> None:
    assert difference(a, b) == difference(b, a) == expected
