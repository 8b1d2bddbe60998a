"""Prompts are cut into pieces that cover them, and what they share is read once where that pays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.prefill_planner import PrefillChunk, PrefillPlan, plan_prefills
from birdie_zmq.engine.planning.shape_buckets import PROMPT_PIECES
from birdie_zmq.engine.planning.steps import Tokens


def prompts_of(*texts: list[int]) -> list[Tokens]:
    return [np.array(text, np.int32) for text in texts]


def computed(prompts: list[Tokens], readings: list[PrefillPlan]) -> int:
    """How many positions are read if kept beginnings are there as long as they are wanted."""
    kept: set[bytes] = set()
    total = 0
    for number, pieces in readings:
        known = [piece.end for piece in pieces if piece.is_kept and prompts[number][: piece.end].tobytes() in kept]
        total += sum(piece.size for piece in pieces if piece.begin >= max(known, default=0))
        kept |= {prompts[number][: piece.end].tobytes() for piece in pieces if piece.is_kept}
    return total


texts = st.lists(
    st.tuples(
        st.sampled_from([0, 5, 40, 700]),
        st.sampled_from([0, 3, 90]),
        st.lists(st.integers(1, 3), min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=12,
).map(lambda parts: prompts_of(*([7] * shared + [8] * also + own for shared, also, own in parts)))


@given(texts, st.sampled_from([4, 32, 1024]))
def test_pieces_cover_each_prompt_but_its_last_token(prompts: list[Tokens], overhead: int) -> None:
    readings = plan_prefills(prompts, overhead)

    assert sorted(number for number, _ in readings) == list(range(len(prompts)))
    for number, pieces in readings:
        at = 0
        for piece in pieces:
            assert piece.begin == at
            assert piece.begin < piece.end <= piece.begin + piece.size
            assert piece.size in PROMPT_PIECES
            at = piece.end
        assert at == len(prompts[number]) - 1


@given(texts, st.sampled_from([4, 32, 1024]))
def test_sharing_never_reads_more(prompts: list[Tokens], overhead: int) -> None:
    alone = [plan_prefills([prompt], overhead)[0]._replace(number=number) for number, prompt in enumerate(prompts)]
    readings = plan_prefills(prompts, overhead)
    calls = sum(len(pieces) for _, pieces in readings)

    # A beginning of its own costs a call more, and padding at its end.
    assert computed(prompts, readings) <= computed(prompts, alone) + calls * max(overhead, PROMPT_PIECES[0])


def test_a_common_beginning_is_read_once() -> None:
    prompts = prompts_of(*([7] * 512 + [1, 2, 3] + [number] * 12 for number in range(4)))

    readings = plan_prefills(prompts, 32)

    assert {pieces[0] for _, pieces in readings} == {PrefillChunk(0, 512, 512, False)}
    assert computed(prompts, readings) == 512 + 16 + 4 * 16


def test_beginnings_that_begin_alike_are_read_one_behind_the_other() -> None:
    prompts = prompts_of(*([7] * 256 + [half] * 128 + [number] * 9 for half in (1, 2) for number in (3, 4, 5)))

    assert computed(prompts, plan_prefills(prompts, 32)) == 256 + 2 * 128 + 6 * 16


def test_equal_prompts_are_read_once() -> None:
    prompts = prompts_of(*[[1, 2, 3] * 50] * 4)

    readings = plan_prefills(prompts, 32)

    assert computed(prompts, readings) == computed(prompts[:1], readings[:1])


def test_what_few_share_is_not_worth_a_call() -> None:
    prompts = prompts_of([7] * 20 + [1] * 50, [7] * 20 + [2] * 50)

    assert not any(piece.is_kept for _, pieces in plan_prefills(prompts, 32) for piece in pieces)


def test_those_that_begin_alike_are_neighbours() -> None:
    prompts = prompts_of([2, 1, 5], [1, 1, 5], [2, 0, 5], [1, 0, 5])

    assert [number for number, _ in plan_prefills(prompts, 32)] == [3, 1, 2, 0]


def test_a_prompt_of_one_token_needs_no_piece() -> None:
    assert plan_prefills(prompts_of([5]), 32) == [PrefillPlan(0, ())]
    assert PrefillPlan(0, ()).slots == 0


def test_slots_count_the_padding_of_the_last_piece() -> None:
    assert PrefillPlan(0, (PrefillChunk(0, 64, 64, False), PrefillChunk(64, 70, 16, False))).slots == 80


def test_no_prompts_are_no_readings() -> None:
    assert plan_prefills([], 32) == []
