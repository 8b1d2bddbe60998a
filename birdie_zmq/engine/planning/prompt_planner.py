"""The plan for prefilling prompts before generation: the steps that would score what follows them. Pure NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import PAD, ScoredSequence, Step, Tokens
from birdie_zmq.engine.planning.tree_planner import plan_trees


def plan_prompts(
    mode: ExecutionMode, prompts: Sequence[Tokens], buckets: Buckets, cached: Mapping[bytes, int], shared: int = 0
) -> list[Step]:
    """Plan the steps that prefill prompts; each position of a step is the last of a prompt.

    In a row of an `Extend` or a `Fork` that is the last token, so the state of the row is that of the prompt: planners end
    a chunk where a text ends that others continue.

    Args:
        mode: How the model computes texts.
        prompts: The tokens int32[n] of each prompt, n > 0. The owners of a step are their indices.
        buckets: The shapes that steps may have.
        cached: The capacity in tokens of each cached prefix, by the bytes of its tokens.
        shared: The length of the prefix of all prompts, if it gets a state in any case; only in a mode that
            `keeps_entries`. Each prompt has more tokens.
    """
    # Only the position before the appended token is needed, so that token may have any value.
    items = [ScoredSequence(np.append(prompt, np.int32(PAD)), 1) for prompt in prompts]
    if shared:
        return plan_trees(PrefixTree(items), buckets, cached, shared)
    return mode.group(items).plan(buckets, cached)
