"""The order of steps on a device that computes two at the same time; `replay` checks the plans with that order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from birdie_zmq.engine.planning.step_order import MAX_OVERLAPPED_CAPACITY, overlap_steps
from birdie_zmq.engine.planning.steps import Extend, Fork, ScorePositions, Step, StepKind, Tree

ONE = np.ones(1, np.int32)


def step_of(kind: StepKind) -> Step:
    return Step.of(np.ones((1, 1), np.int32), 1, kind, ScorePositions())


def text(name: bytes, chunks: int, capacity: int = 64) -> list[Step]:
    """Return the chunks of a text; its state is cached under a name after the last chunk."""
    return [
        step_of(Extend(ONE, b"" if chunk == 0 else None, name if chunk == chunks - 1 else None, capacity))
        for chunk in range(chunks)
    ]


def tree(prefix: bytes) -> Step:
    return step_of(Tree(ONE[None], ONE[None], prefix))


def order(steps: Sequence[Step]) -> list[int]:
    """Return the number of each step in the order of `overlap_steps`."""
    numbers = {id(step.tokens): number for number, step in enumerate(steps)}
    return [numbers[id(step.tokens)] for step in overlap_steps(steps)]


def chains(steps: Sequence[Step]) -> list[int]:
    return [step.kind.chain for step in overlap_steps(steps) if isinstance(step.kind, Extend)]


def test_chunks_of_two_texts_take_turns() -> None:
    steps = [*text(b"a", 3), *text(b"b", 3)]

    assert order(steps) == [0, 3, 1, 4, 2, 5]
    assert chains(steps) == [0, 1, 0, 1, 0, 1]


def test_at_most_two_texts_are_open() -> None:
    steps = [*text(b"a", 2), *text(b"b", 3), *text(b"c", 2)]

    assert order(steps) == [0, 2, 1, 3, 5, 4, 6]
    assert chains(steps) == [0, 1, 0, 1, 0, 1, 0]


def test_the_chunks_of_a_single_text_keep_their_order() -> None:
    assert order(text(b"a", 4)) == [0, 1, 2, 3]


def test_trees_do_not_follow_the_state_that_they_wait_for() -> None:
    assert order([*text(b"a", 1), tree(b"a"), tree(b"a"), *text(b"b", 1), tree(b"b")]) == [0, 3, 1, 2, 4]


def test_independent_steps_keep_their_order() -> None:
    assert order([tree(b""), tree(b""), *text(b"a", 1), tree(b"")]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "steps",
    [
        [*text(b"a", 2, MAX_OVERLAPPED_CAPACITY + 1), *text(b"b", 2)],
        [*text(b"a", 2), step_of(Fork(ONE, ONE, 64)), *text(b"b", 2)],
    ],
    ids=["large states", "forks"],
)
def test_plans_that_may_not_be_ordered_are_not_changed(steps: list[Step]) -> None:
    assert overlap_steps(steps) == steps
