"""Plans of stems and leaves: each target once from exactly what stands before it, and shared beginnings read once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdie_zmq.engine.planning.fork_planner import piece_lengths, plan_forks
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, ScoredSequence, Tree
from birdie_zmq.engine.scoring import plan_for
from birdie_zmq.types import StepLimits
from tests.engine.replay import Knows, any_buckets, replay, requests, states_of, texts, tokens_of

CPU = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024))

thorough = settings(max_examples=100)


@thorough
@given(st.data(), any_buckets)
def test_every_target_is_scored_once_from_all_that_stands_before_it(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    replayed = replay(items, plan_forks(items, shapes), "forks", shapes, {})

    assert replayed.used >= PrefixTree(items).distinct_tokens()


@thorough
@given(st.data(), any_buckets)
def test_states_that_are_there_are_continued_rightly(data: st.DataObject, shapes: Buckets) -> None:
    of = data.draw(texts())
    backend = Knows("forks", data.draw(states_of(of)))

    for _ in range(2):  # the second batch finds what the first has left
        items = data.draw(requests(of))
        backend.states = replay(
            items, plan_for(backend.as_backend, items, shapes), "forks", shapes, backend.states
        ).states

    assert all(backend.states.values())


def test_no_requests_need_no_steps() -> None:
    assert plan_forks([], CPU) == []


# --- Stems and leaves ------------------------------------------------------------------------------------------------


def question(*answers: int, of: int = 40, first: int = 1) -> list[ScoredSequence]:
    """A question of some tokens, with answers of so many tokens."""
    return [
        ScoredSequence(tokens_of([first, *range(2, of + 1), *[100 + i] * answer, 9]), answer)
        for i, answer in enumerate(answers)
    ]


def test_what_answers_share_is_read_once_and_forked() -> None:
    items = question(3, 5, 4)
    stem, leaves = plan_forks(items, CPU)

    assert isinstance(stem.how, Extend)
    assert isinstance(leaves.how, Fork)
    assert stem.used_tokens == 40
    # Of each answer all tokens but the first are read, since the first is predicted at the end of the question.
    assert leaves.used_tokens == 3 + 5 + 4
    assert leaves.how.parents[:3].tolist() == [0, 0, 0]
    assert sorted(leaves.how.lengths.tolist(), reverse=True)[:3] == [5, 4, 3]


def test_an_answer_of_one_token_needs_no_leaf() -> None:
    items = [ScoredSequence(tokens_of([*range(1, 41), answer]), 1) for answer in (50, 51, 52)]

    (stem,) = plan_forks(items, CPU)

    assert isinstance(stem.how, Extend)
    assert sorted(stem.targets.tolist()) == [50, 51, 52]
    assert stem.used_tokens == 40


def test_texts_that_share_little_are_read_side_by_side() -> None:
    items = [ScoredSequence(tokens_of([1, *[first] * 30]), 5) for first in (2, 3, 4)]

    (step,) = plan_forks(items, CPU)

    assert isinstance(step.how, Extend)
    assert step.how.lengths[:3].tolist() == [30, 30, 30]


def test_a_batch_of_questions_costs_little_more_than_its_distinct_tokens() -> None:
    items = [item for first in range(200, 216) for item in question(3, 5, 4, first=first)]

    replayed = replay(items, plan_forks(items, CPU), "forks", CPU, {})

    assert replayed.used == PrefixTree(items).distinct_tokens()


def test_a_long_beginning_is_read_once_and_by_the_next_batch_not_at_all() -> None:
    prefix = np.random.default_rng(0).integers(1, 1000, 600, dtype=np.int32)

    def batch(seed: int) -> list[ScoredSequence]:
        random = np.random.default_rng(seed)
        texts = [random.integers(1, 1000, 60, dtype=np.int32) for _ in range(20)]
        return [ScoredSequence(np.concatenate([prefix, text]), 5) for text in texts]

    backend = Knows("forks")
    first = replay(batch(1), plan_for(backend.as_backend, batch(1), CPU), "forks", CPU, {})
    assert sum(len(text) - len(name) // 4 for name, text in first.read) == 600
    assert first.used == PrefixTree(batch(1)).distinct_tokens()
    backend.states = first.states

    second = replay(batch(2), plan_for(backend.as_backend, batch(2), CPU), "forks", CPU, first.states)

    assert second.read == []
    assert second.used == PrefixTree(batch(2)).distinct_tokens() - 600


def test_a_state_without_the_slots_to_go_on_is_not_used() -> None:
    prefix = tokens_of(range(1, 101))
    items = [ScoredSequence(np.concatenate([prefix, tokens_of([last] * 40)]), 5) for last in (200, 201)]
    tight, roomy = ({prefix.tobytes(): room} for room in (128, 512))

    tight_steps, roomy_steps = (plan_for(Knows("forks", states).as_backend, items, CPU) for states in (tight, roomy))

    assert replay(items, tight_steps, "forks", CPU, tight).used == PrefixTree(items).distinct_tokens()
    assert replay(items, roomy_steps, "forks", CPU, roomy).used == PrefixTree(items).distinct_tokens() - 100


def test_the_more_is_shared_the_less_is_computed() -> None:
    prefix = np.random.default_rng(0).integers(1, 1000, 400, dtype=np.int32)

    def share_of(length: int) -> float:
        items = [
            ScoredSequence(np.concatenate([prefix[:length], item.tokens]), item.count)
            for first in range(200, 220)
            for item in question(3, 5, 4, first=first)
        ]
        computed = replay(items, plan_forks(items, CPU), "forks", CPU, {}).computed
        return computed / sum(len(item.row) for item in items)

    shares = [share_of(length) for length in (0, 50, 100, 200, 400)]

    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.2


def test_a_state_has_the_slots_for_the_padding_of_leaves_too() -> None:
    """All of a step is written behind a row, and JAX moves a write that has no room to the left, over what is there."""
    prefix, stem = range(1, 33), [200] * 8
    items = [ScoredSequence(tokens_of([*prefix, *stem, *[300 + i] * 72]), 5) for i in range(2)]
    # Stem and leaves end at the 111th token, and the padding of the leaves at the 136th.
    states = {tokens_of(prefix).tobytes(): 128}

    steps = plan_for(Knows("forks", states).as_backend, items, CPU)

    assert replay(items, steps, "forks", CPU, states).used >= 8 + 2 * 71


@given(st.data(), any_buckets)
def test_all_steps_are_of_states(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    assert not any(isinstance(step.how, Dense | Tree) for step in plan_forks(items, shapes))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_forced_number_of_rows_is_that_of_every_step_of_stems_and_leaves(rows: int) -> None:
    shapes = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024), limits=StepLimits(rows=rows))
    items = question(3, 5, 4)
    steps = plan_forks(items, shapes)

    replay(items, steps, "forks", shapes, {})

    assert {step.shape[0] for step in steps} == {rows}


def test_pieces_are_no_longer_than_the_budget_but_for_the_shortest_row() -> None:
    assert piece_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=50))) == (4, 6, 8, 12, 16, 24, 32, 48)
    assert piece_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1))) == (4, 6, 8, 12, 16)
    assert piece_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=2**16)))[-1] == 1024
