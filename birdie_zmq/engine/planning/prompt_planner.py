"""The plan for prefilling prompts before generation: the steps that would score what follows them. Pure NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import PAD, Extend, ScoredSequence, Step, Tokens


def plan_prompts(
    mode: ExecutionMode, prompts: Sequence[Tokens], buckets: Buckets, cached: Mapping[bytes, int]
) -> list[Step]:
    """Plan the steps that prefill prompts; each position of a step is the last of a prompt.

    A prompt that ends in the middle of an `Extend` has no position, because no state ends there; this happens only to
    prompts that are the beginning of others. It must be planned again, without those.

    Args:
        mode: How the model computes texts.
        prompts: The tokens int32[n] of each prompt, n > 0. The owners of a step are their indices.
        buckets: The shapes that steps may have.
        cached: The capacity in tokens of each cached prefix, by the bytes of its tokens.
    """
    # Only the position before the appended token is needed, so that token may have any value.
    group = mode.group([ScoredSequence(np.append(prompt, np.int32(PAD)), 1) for prompt in prompts])
    return [_with_states_only(step) for step in group.plan(buckets, cached)]


def _with_states_only(step: Step) -> Step:
    """Drop the positions after which there is no state."""
    if not isinstance(step.kind, Extend):
        return step
    kept = step.positions == step.kind.lengths[step.rows] - 1
    columns = {name: getattr(step, name)[kept] for name in ("rows", "positions", "targets", "owners")}
    return replace(step, **columns)
