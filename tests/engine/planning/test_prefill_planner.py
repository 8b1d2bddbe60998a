"""Prompts are split into chunks that cover them, and shared prefixes are prefilled once where that is cheaper."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.prefill_planner import PrefillChunk, PrefillPlan, plan_prefills
from birdie_zmq.engine.planning.shape_buckets import PREFILL_CHUNK_SIZES
from birdie_zmq.engine.planning.steps import Tokens


def prompts_of(*texts: list[int]) -> list[Tokens]:
    return [np.array(text, np.int32) for text in texts]


def computed(prompts: list[Tokens], plans: list[PrefillPlan]) -> int:
    """Return the number of computed positions if cached prefixes are never evicted."""
    cached: set[bytes] = set()
    total = 0
    for number, chunks in plans:
        known = [chunk.end for chunk in chunks if chunk.is_cached and prompts[number][: chunk.end].tobytes() in cached]
        total += sum(chunk.size for chunk in chunks if chunk.begin >= max(known, default=0))
        cached |= {prompts[number][: chunk.end].tobytes() for chunk in chunks if chunk.is_cached}
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
def test_chunks_cover_each_prompt_except_its_last_token(prompts: list[Tokens], call_tokens: int) -> None:
    plans = plan_prefills(prompts, call_tokens)

    assert sorted(number for number, _ in plans) == list(range(len(prompts)))
    for number, chunks in plans:
        at = 0
        for chunk in chunks:
            assert chunk.begin == at
            assert chunk.begin < chunk.end <= chunk.begin + chunk.size
            assert chunk.size in PREFILL_CHUNK_SIZES
            at = chunk.end
        assert at == len(prompts[number]) - 1


@given(texts, st.sampled_from([4, 32, 1024]))
def test_sharing_never_computes_more(prompts: list[Tokens], call_tokens: int) -> None:
    alone = [plan_prefills([prompt], call_tokens)[0]._replace(number=number) for number, prompt in enumerate(prompts)]
    plans = plan_prefills(prompts, call_tokens)
    calls = sum(len(chunks) for _, chunks in plans)

    # A separate prefix costs one more call, and padding at its end.
    assert computed(prompts, plans) <= computed(prompts, alone) + calls * max(call_tokens, PREFILL_CHUNK_SIZES[0])


def test_common_prefix_is_prefilled_once() -> None:
    prompts = prompts_of(*([7] * 512 + [1, 2, 3] + [number] * 12 for number in range(4)))

    plans = plan_prefills(prompts, 32)

    assert {chunks[0] for _, chunks in plans} == {PrefillChunk(0, 512, 512, False)}
    assert computed(prompts, plans) == 512 + 16 + 4 * 16


def test_nested_prefixes_are_each_prefilled_once() -> None:
    prompts = prompts_of(*([7] * 256 + [half] * 128 + [number] * 9 for half in (1, 2) for number in (3, 4, 5)))

    assert computed(prompts, plan_prefills(prompts, 32)) == 256 + 2 * 128 + 6 * 16


def test_equal_prompts_are_prefilled_once() -> None:
    prompts = prompts_of(*[[1, 2, 3] * 50] * 4)

    plans = plan_prefills(prompts, 32)

    assert computed(prompts, plans) == computed(prompts[:1], plans[:1])


def test_prefix_shared_by_few_prompts_is_not_cached() -> None:
    prompts = prompts_of([7] * 20 + [1] * 50, [7] * 20 + [2] * 50)

    assert not any(chunk.is_cached for _, chunks in plan_prefills(prompts, 32) for chunk in chunks)


def test_prompts_with_a_common_prefix_are_neighbours() -> None:
    prompts = prompts_of([2, 1, 5], [1, 1, 5], [2, 0, 5], [1, 0, 5])

    assert [number for number, _ in plan_prefills(prompts, 32)] == [3, 1, 2, 0]


def test_one_token_prompt_needs_no_chunk() -> None:
    assert plan_prefills(prompts_of([5]), 32) == [PrefillPlan(0, ())]
    assert PrefillPlan(0, ()).capacity == 0


def test_capacity_includes_the_padding_of_the_last_chunk() -> None:
    assert PrefillPlan(0, (PrefillChunk(0, 64, 64, False), PrefillChunk(64, 70, 16, False))).capacity == 80


def test_no_prompts_give_no_plans() -> None:
    assert plan_prefills([], 32) == []
