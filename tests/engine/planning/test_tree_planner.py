"""Plans of trees: each target once from exactly what stands before it, and few tokens beyond the distinct ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Extend, ScoredSequence, Tokens, Tree
from birdie_zmq.engine.planning.tree_planner import plan_trees, row_lengths
from birdie_zmq.engine.scoring import plan_for
from birdie_zmq.types import StepLimits
from tests.engine.replay import Knows, any_buckets, replay, requests, states_of, texts, tokens_of

CPU = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024))

thorough = settings(max_examples=100)


@thorough
@given(st.data(), any_buckets)
def test_every_target_is_scored_once_from_all_that_stands_before_it(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    replayed = replay(items, plan_trees(items, shapes), "branches", shapes, {})

    assert replayed.used >= PrefixTree(items).distinct_tokens()


@thorough
@given(st.data(), any_buckets)
def test_states_that_are_there_are_continued_rightly(data: st.DataObject, shapes: Buckets) -> None:
    of = data.draw(texts())
    backend = Knows("branches", data.draw(states_of(of)))

    for _ in range(2):  # the second batch finds what the first has left
        items = data.draw(requests(of))
        backend.states = replay(
            items, plan_for(backend.as_backend, items, shapes), "branches", shapes, backend.states
        ).states

    assert all(backend.states.values())


@given(st.data(), any_buckets)
def test_a_step_whose_texts_follow_no_state_begins_at_depth_zero(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    for step in plan_trees(items, shapes):
        if isinstance(step.how, Tree):
            assert (step.how.depths[:, 0] == 0).all()
            assert step.how.ends.max() <= step.shape[1]


def test_no_requests_need_no_steps() -> None:
    assert plan_trees([], CPU) == []


# --- What is saved ---------------------------------------------------------------------------------------------------


def questions(count: int, answers: int, prefix: Tokens) -> list[ScoredSequence]:
    """Questions of 20 to 120 tokens with answers of 1 to 12, all behind a common prefix."""
    random = np.random.default_rng(count)
    items = []
    for _ in range(count):
        question = random.integers(1, 1000, random.integers(20, 121), dtype=np.int32)
        for _ in range(answers):
            answer = random.integers(1, 1000, random.integers(1, 13), dtype=np.int32)
            items.append(ScoredSequence(np.concatenate([prefix, question, answer]), len(answer)))
    return items


NOTHING = tokens_of([])
SHARED = np.random.default_rng(600).integers(1, 1000, 600, dtype=np.int32)


@pytest.mark.parametrize(("count", "answers", "prefix"), [(60, 4, NOTHING), (20, 4, SHARED), (20, 1, SHARED)])
def test_little_is_computed_beyond_the_distinct_tokens(count: int, answers: int, prefix: Tokens) -> None:
    items = questions(count, answers, prefix)

    replayed = replay(items, plan_trees(items, CPU), "branches", CPU, {})

    assert replayed.computed <= 1.15 * PrefixTree(items).distinct_tokens()


def test_a_long_beginning_that_all_share_is_read_once() -> None:
    items = questions(20, 4, SHARED)

    steps = plan_trees(items, CPU)

    read = [step for step in steps if isinstance(step.how, Extend)]
    assert sum(step.used_tokens for step in read) == len(SHARED)
    assert {step.how.state for step in steps if isinstance(step.how, Tree)} == {SHARED.tobytes()}


def test_a_beginning_whose_state_is_there_is_not_read_again() -> None:
    first = questions(20, 4, SHARED)
    states = replay(first, plan_trees(first, CPU), "branches", CPU, {}).states
    assert SHARED.tobytes() in states
    second = questions(21, 4, SHARED)

    replayed = replay(second, plan_trees(second, CPU, set(states)), "branches", CPU, states)

    assert replayed.read == []
    assert replayed.used == PrefixTree(second).distinct_tokens() - len(SHARED)


def test_a_beginning_in_which_something_is_scored_is_read_again() -> None:
    scored_all = ScoredSequence(np.append(SHARED, np.int32(5)), 600)

    steps = plan_trees([scored_all], CPU, {SHARED[:100].tobytes(), SHARED.tobytes()})

    assert replay([scored_all], steps, "branches", CPU, {}).used == len(SHARED)


def test_questions_that_share_little_need_no_state() -> None:
    steps = plan_trees(questions(60, 4, SHARED[:5]), CPU)

    assert {step.how.state for step in steps if isinstance(step.how, Tree)} == {b""}
    assert not any(isinstance(step.how, Extend) for step in steps)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_forced_number_of_rows_is_that_of_every_step_of_trees(rows: int) -> None:
    shapes = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024), limits=StepLimits(rows=rows))
    items = questions(20, 4, NOTHING)
    steps = plan_trees(items, shapes)

    replay(items, steps, "branches", shapes, {})

    assert {step.shape[0] for step in steps} == {rows}


def test_rows_are_no_longer_than_the_budget_and_no_shorter_than_the_shortest() -> None:
    lengths = row_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=100)))

    assert lengths == (16, 24, 32, 48, 64, 96)
    assert row_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1))) == (16,)
    assert row_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=2**16)))[-1] == 1024
