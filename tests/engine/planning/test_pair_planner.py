"""Plans of pairs: each distinct pair gets one row, laid out as the model's own `score` takes it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.pair_planner import PairGroup
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Pairs, ScoredSequence
from birdie_zmq.types import StepLimits

requests = st.lists(
    st.lists(st.integers(1, 3), min_size=2, max_size=20).flatmap(
        lambda tokens: st.integers(1, len(tokens) - 1).map(
            lambda count: ScoredSequence(np.array(tokens, np.int32), count)
        )
    ),
    max_size=12,
)


def read_back(input_ids: list[int], label_ids: list[int], loss_mask: list[int]) -> tuple[list[int], int]:
    """Return a request's tokens and its number of scored tokens, from its row as `Model.score` documents it."""
    end = max(i for i, counts in enumerate(loss_mask) if counts) + 1
    assert all(loss_mask[loss_mask.index(1) : end]), "scored tokens are contiguous"
    assert not any(input_ids[end:] + label_ids[end:]), "the rest is padding"
    assert input_ids[1:end] == label_ids[: end - 1]
    return [*input_ids[:end], label_ids[end - 1]], sum(loss_mask)


@given(requests, st.integers(16, 100), st.one_of(st.none(), st.integers(1, 4)))
def test_each_distinct_pair_gets_one_row(items: list[ScoredSequence], tokens: int, rows: int | None) -> None:
    buckets = Buckets(20, 7, StepBudget(tokens), StepLimits(rows=rows))
    owners: list[int] = []
    taken: set[tuple[int, int]] = set()
    for number, step in enumerate(PairGroup(items).plan(buckets, {})):
        assert step.shape in buckets.shapes
        assert isinstance(step.kind, Pairs)
        owner_of = dict(zip(step.rows.tolist(), step.owners.tolist(), strict=True))
        assert step.used_tokens == sum(len(items[owner].row) for owner in owner_of.values())
        for row, owner in zip(step.rows.tolist(), step.owners.tolist(), strict=True):
            columns = [x[row].tolist() for x in (step.tokens, step.kind.label_ids, step.kind.loss_mask)]
            assert read_back(*columns) == (items[owner].tokens.tolist(), items[owner].count)
            owners.append(owner)
            taken.add((number, row))
    assert sorted(owners) == list(range(len(items)))
    assert len(taken) == len({(item.tokens.tobytes(), item.count) for item in items})
