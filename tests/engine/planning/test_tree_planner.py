"""Plans of trees: each target is scored once from its exact prefix, with few tokens beyond the distinct ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdie_zmq.engine.planning.execution_mode import TREES
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Extend, ScoredSequence, Tokens, Tree
from birdie_zmq.engine.planning.tree_planner import row_lengths
from birdie_zmq.types import StepLimits
from tests.engine.replay import any_buckets, replay, requests, states_of, texts, tokens_of

CPU = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024))

thorough = settings(max_examples=100)


@thorough
@given(st.data(), any_buckets)
def test_every_target_is_scored_once_from_its_whole_prefix(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    replayed = replay(items, TREES.group(items).plan(shapes, {}), TREES, shapes, {})

    assert replayed.used >= PrefixTree(items).distinct_tokens()


@thorough
@given(st.data(), any_buckets)
def test_cached_states_are_extended_correctly(data: st.DataObject, shapes: Buckets) -> None:
    of = data.draw(texts())
    states = data.draw(states_of(of))

    for _ in range(2):  # the second batch finds the states cached by the first
        items = data.draw(requests(of))
        states = replay(items, TREES.group(items).plan(shapes, states), TREES, shapes, states).states

    assert all(states.values())


@given(st.data(), any_buckets)
def test_tree_step_without_a_state_starts_at_depth_zero(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    for step in TREES.group(items).plan(shapes, {}):
        if isinstance(step.kind, Tree):
            assert (step.kind.depths[:, 0] == 0).all()
            assert step.kind.ends.max() <= step.shape[1]


def test_no_requests_give_no_steps() -> None:
    assert TREES.group([]).plan(CPU, {}) == []


# --- Savings ----------------------------------------------------------------------------------------------------------


def questions(count: int, answers: int, prefix: Tokens) -> list[ScoredSequence]:
    """Return questions of 20 to 120 tokens with answers of 1 to 12 tokens, all after a common prefix."""
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
def test_computation_is_close_to_the_distinct_tokens(count: int, answers: int, prefix: Tokens) -> None:
    items = questions(count, answers, prefix)

    replayed = replay(items, TREES.group(items).plan(CPU, {}), TREES, CPU, {})

    assert replayed.computed <= 1.15 * PrefixTree(items).distinct_tokens()


def test_long_shared_prefix_is_prefilled_once() -> None:
    items = questions(20, 4, SHARED)

    steps = TREES.group(items).plan(CPU, {})

    prefills = [step for step in steps if isinstance(step.kind, Extend)]
    assert sum(step.used_tokens for step in prefills) == len(SHARED)
    assert {step.kind.prefix for step in steps if isinstance(step.kind, Tree)} == {SHARED.tobytes()}


def test_cached_prefix_is_not_prefilled_again() -> None:
    first = questions(20, 4, SHARED)
    states = replay(first, TREES.group(first).plan(CPU, {}), TREES, CPU, {}).states
    assert SHARED.tobytes() in states
    second = questions(21, 4, SHARED)

    replayed = replay(second, TREES.group(second).plan(CPU, states), TREES, CPU, states)

    assert replayed.prefills == []
    assert replayed.used == PrefixTree(second).distinct_tokens() - len(SHARED)


def test_cached_prefix_with_targets_in_it_is_computed_again() -> None:
    scored_all = ScoredSequence(np.append(SHARED, np.int32(5)), 600)

    steps = TREES.group([scored_all]).plan(CPU, {SHARED[:100].tobytes(): 256, SHARED.tobytes(): 1024})

    assert replay([scored_all], steps, TREES, CPU, {}).used == len(SHARED)


def test_questions_with_a_short_common_prefix_need_no_state() -> None:
    steps = TREES.group(questions(60, 4, SHARED[:5])).plan(CPU, {})

    assert {step.kind.prefix for step in steps if isinstance(step.kind, Tree)} == {b""}
    assert not any(isinstance(step.kind, Extend) for step in steps)


@pytest.mark.parametrize("rows", [1, 3])
def test_forced_row_count_applies_to_every_tree_step(rows: int) -> None:
    shapes = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024), limits=StepLimits(rows=rows))
    items = questions(20, 4, NOTHING)
    steps = TREES.group(items).plan(shapes, {})

    replay(items, steps, TREES, shapes, {})

    assert {step.shape[0] for step in steps} == {rows}


def test_tree_row_lengths_respect_the_budget_and_the_minimum_length() -> None:
    lengths = row_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=100)))

    assert lengths == (16, 24, 32, 48, 64, 96)
    assert row_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1))) == (16,)
    assert row_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=2**16)))[-1] == 1024
