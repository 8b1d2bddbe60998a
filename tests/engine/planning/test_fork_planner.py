"""Plans of stems and leaves: each target is scored once from its prefix, and shared prefixes are computed once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdie_zmq.engine.planning.execution_mode import FORKS
from birdie_zmq.engine.planning.fork_planner import chunk_lengths
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, ScoredSequence, Tree
from birdie_zmq.types import StepLimits
from tests.engine.replay import any_buckets, replay, requests, states_of, texts, tokens_of

CPU = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024))

thorough = settings(max_examples=100)


@thorough
@given(st.data(), any_buckets)
def test_every_target_is_scored_once_from_its_whole_prefix(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    replayed = replay(items, FORKS.group(items).plan(shapes, {}), FORKS, shapes, {})

    assert replayed.used >= PrefixTree(items).distinct_tokens()


@thorough
@given(st.data(), any_buckets)
def test_cached_states_are_extended_correctly(data: st.DataObject, shapes: Buckets) -> None:
    of = data.draw(texts())
    states = data.draw(states_of(of))

    for _ in range(2):  # the second batch finds the states cached by the first
        items = data.draw(requests(of))
        states = replay(items, FORKS.group(items).plan(shapes, states), FORKS, shapes, states).states

    assert all(states.values())


def test_no_requests_give_no_steps() -> None:
    assert FORKS.group([]).plan(CPU, {}) == []


# --- Stems and leaves -------------------------------------------------------------------------------------------------


def question(*answers: int, of: int = 40, first: int = 1) -> list[ScoredSequence]:
    """Return requests for one question of `of` tokens, with answers of these lengths."""
    return [
        ScoredSequence(tokens_of([first, *range(2, of + 1), *[100 + i] * answer, 9]), answer)
        for i, answer in enumerate(answers)
    ]


def test_shared_prefix_of_answers_is_prefilled_once_and_forked() -> None:
    items = question(3, 5, 4)
    stem, leaves = FORKS.group(items).plan(CPU, {})

    assert isinstance(stem.kind, Extend)
    assert isinstance(leaves.kind, Fork)
    assert stem.used_tokens == 40
    # The first token of each answer is predicted at the end of the question, so only the others are computed.
    assert leaves.used_tokens == 3 + 5 + 4
    assert leaves.kind.parents[:3].tolist() == [0, 0, 0]
    assert sorted(leaves.kind.lengths.tolist(), reverse=True)[:3] == [5, 4, 3]


def test_one_token_answer_needs_no_leaf() -> None:
    items = [ScoredSequence(tokens_of([*range(1, 41), answer]), 1) for answer in (50, 51, 52)]

    (stem,) = FORKS.group(items).plan(CPU, {})

    assert isinstance(stem.kind, Extend)
    assert sorted(stem.targets.tolist()) == [50, 51, 52]
    assert stem.used_tokens == 40


def test_texts_with_a_short_common_prefix_are_computed_side_by_side() -> None:
    items = [ScoredSequence(tokens_of([1, *[first] * 30]), 5) for first in (2, 3, 4)]

    (step,) = FORKS.group(items).plan(CPU, {})

    assert isinstance(step.kind, Extend)
    assert step.kind.lengths[:3].tolist() == [30, 30, 30]


def test_only_the_distinct_tokens_of_a_batch_of_questions_are_computed() -> None:
    items = [item for first in range(200, 216) for item in question(3, 5, 4, first=first)]

    replayed = replay(items, FORKS.group(items).plan(CPU, {}), FORKS, CPU, {})

    assert replayed.used == PrefixTree(items).distinct_tokens()


def test_long_prefix_is_prefilled_once_and_reused_by_the_next_batch() -> None:
    prefix = np.random.default_rng(0).integers(1, 1000, 600, dtype=np.int32)

    def batch(seed: int) -> list[ScoredSequence]:
        random = np.random.default_rng(seed)
        texts = [random.integers(1, 1000, 60, dtype=np.int32) for _ in range(20)]
        return [ScoredSequence(np.concatenate([prefix, text]), 5) for text in texts]

    first = replay(batch(1), FORKS.group(batch(1)).plan(CPU, {}), FORKS, CPU, {})
    assert sum(len(text) - len(name) // 4 for name, text in first.prefills) == 600
    assert first.used == PrefixTree(batch(1)).distinct_tokens()

    second = replay(batch(2), FORKS.group(batch(2)).plan(CPU, first.states), FORKS, CPU, first.states)

    assert second.prefills == []
    assert second.used == PrefixTree(batch(2)).distinct_tokens() - 600


def test_cached_state_without_enough_capacity_is_not_used() -> None:
    prefix = tokens_of(range(1, 101))
    items = [ScoredSequence(np.concatenate([prefix, tokens_of([last] * 40)]), 5) for last in (200, 201)]
    tight, roomy = ({prefix.tobytes(): capacity} for capacity in (128, 512))

    tight_steps, roomy_steps = (FORKS.group(items).plan(CPU, states) for states in (tight, roomy))

    assert replay(items, tight_steps, FORKS, CPU, tight).used == PrefixTree(items).distinct_tokens()
    assert replay(items, roomy_steps, FORKS, CPU, roomy).used == PrefixTree(items).distinct_tokens() - 100


def test_longer_shared_prefix_reduces_computation() -> None:
    prefix = np.random.default_rng(0).integers(1, 1000, 400, dtype=np.int32)

    def share_of(length: int) -> float:
        items = [
            ScoredSequence(np.concatenate([prefix[:length], item.tokens]), item.count)
            for first in range(200, 220)
            for item in question(3, 5, 4, first=first)
        ]
        computed = replay(items, FORKS.group(items).plan(CPU, {}), FORKS, CPU, {}).computed
        return computed / sum(len(item.row) for item in items)

    shares = [share_of(length) for length in (0, 50, 100, 200, 400)]

    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.2


def test_state_capacity_includes_the_padding_of_leaves() -> None:
    """A step writes its padding too, and JAX moves a write beyond the capacity to the left, over existing tokens."""
    prefix, stem = range(1, 33), [200] * 8
    items = [ScoredSequence(tokens_of([*prefix, *stem, *[300 + i] * 72]), 5) for i in range(2)]
    # Stem and leaves end at the 111th token, and the padding of the leaves at the 136th.
    states = {tokens_of(prefix).tobytes(): 128}

    steps = FORKS.group(items).plan(CPU, states)

    assert replay(items, steps, FORKS, CPU, states).used >= 8 + 2 * 71


@given(st.data(), any_buckets)
def test_all_steps_use_a_state(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))

    assert not any(isinstance(step.kind, Dense | Tree) for step in FORKS.group(items).plan(shapes, {}))


@pytest.mark.parametrize("rows", [1, 3])
def test_forced_row_count_applies_to_every_stem_and_leaf_step(rows: int) -> None:
    shapes = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024), limits=StepLimits(rows=rows))
    items = question(3, 5, 4)
    steps = FORKS.group(items).plan(shapes, {})

    replay(items, steps, FORKS, shapes, {})

    assert {step.shape[0] for step in steps} == {rows}


def test_chunk_lengths_respect_the_budget_down_to_the_minimum_length() -> None:
    assert chunk_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=50))) == (4, 6, 8, 12, 16, 24, 32, 48)
    assert chunk_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1))) == (4, 6, 8, 12, 16)
    assert chunk_lengths(Buckets(2048, vocab_size=0, budget=StepBudget(tokens=2**16)))[-1] == 1024
