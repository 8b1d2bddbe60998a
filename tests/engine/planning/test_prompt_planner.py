"""Plans that prefill prompts: each prompt ends once, where its state ends, and distinct tokens are computed once."""

from __future__ import annotations

import numpy as np
import pytest

from birdie_zmq.engine.planning.execution_mode import FORKS, TREES, ExecutionMode
from birdie_zmq.engine.planning.prompt_planner import plan_prompts
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tokens, Tree

BUCKETS = Buckets(4096, 0, StepBudget(tokens=256, call_tokens=16))
MODES = pytest.mark.parametrize("mode", [TREES, FORKS], ids=lambda mode: mode.name)


def prompts_of(*lengths: int, shared: int = 0) -> list[Tokens]:
    """Return prompts of some lengths, whose first `shared` tokens are equal."""
    random = np.random.default_rng(0)
    prefix = random.integers(1, 1000, shared)
    texts = [np.concatenate([prefix, random.integers(1, 1000, length - shared)]) for length in lengths]
    return [text.astype(np.int32) for text in texts]


def owners_of(steps: list[Step]) -> list[int]:
    return [int(owner) for step in steps for owner in step.owners]


def used_tokens(steps: list[Step]) -> int:
    return sum(step.used_tokens for step in steps)


@MODES
def test_every_prompt_ends_once(mode: ExecutionMode) -> None:
    prompts = prompts_of(3, 40, 7, 300, 1, 90, shared=1)

    steps = plan_prompts(mode, prompts, BUCKETS, {})

    assert sorted(owners_of(steps)) == [0, 1, 2, 3, 4, 5]
    for step in steps:
        for row, position, owner in zip(step.rows, step.positions, step.owners, strict=True):
            assert step.tokens[row, position] == prompts[owner][-1]


def test_short_prompts_share_steps_of_trees() -> None:
    prompts = prompts_of(*range(10, 34))

    steps = plan_prompts(TREES, prompts, BUCKETS, {})

    assert len(steps) <= 3
    assert used_tokens(steps) == sum(map(len, prompts))


@MODES
def test_a_shared_prefix_is_computed_once(mode: ExecutionMode) -> None:
    prompts = prompts_of(*range(210, 234), shared=200)

    steps = plan_prompts(mode, prompts, BUCKETS, {})

    assert used_tokens(steps) == 200 + sum(len(prompt) - 200 for prompt in prompts)


@MODES
def test_equal_prompts_are_computed_once(mode: ExecutionMode) -> None:
    (prompt,) = prompts_of(50)

    steps = plan_prompts(mode, [prompt] * 9, BUCKETS, {})

    assert sorted(owners_of(steps)) == list(range(9))
    assert used_tokens(steps) == 50


@MODES
@pytest.mark.parametrize("call_tokens", [0, 16, 200])
def test_each_prompt_ends_where_its_state_ends(mode: ExecutionMode, call_tokens: int) -> None:
    random = np.random.default_rng(call_tokens)
    (longest, other) = prompts_of(900, 700, shared=400)
    prompts = [text[: random.integers(1, len(text))] for text in (longest, other) for _ in range(20)]
    buckets = Buckets(4096, 0, StepBudget(tokens=256, call_tokens=call_tokens))

    steps = plan_prompts(mode, [*prompts, longest, other], buckets, {})

    assert sorted(owners_of(steps)) == list(range(42))
    for step in steps:
        match step.kind:
            case Extend(lengths) | Fork(_, lengths):
                assert (step.positions == lengths[step.rows] - 1).all()
            case Tree(_, ends):
                assert (ends[step.rows, step.positions] > step.positions).all()


def test_a_cached_prefix_is_not_computed_again() -> None:
    prompts = prompts_of(*range(310, 334), shared=300)

    steps = plan_prompts(TREES, prompts, BUCKETS, {prompts[0][:300].tobytes(): 512})

    assert used_tokens(steps) == sum(len(prompt) - 300 for prompt in prompts)
    assert all(isinstance(step.kind, Tree) and len(step.kind.prefix) == 4 * 300 for step in steps)


def test_no_prompts_need_no_steps() -> None:
    assert owners_of(plan_prompts(TREES, [], BUCKETS, {})) == []
