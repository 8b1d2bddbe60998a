"""Execution modes: how a model computes, and therefore how its sequences are planned as steps. Pure NumPy.

======== ============== ==============================================================================
mode     kinds of steps the model
======== ============== ==============================================================================
`ROWS`   Dense          has `logits`, or `hidden` with `unembed`: every step computes whole rows
`FORKS`  Extend, Fork   has a state that can be extended and copied, whether it has attention or not
`TREES`  Extend, Tree   has attention and computes trees of sequences that continue one state
`PAIRS`  Pairs          only scores pairs of a context and a continuation, by a function of its own
======== ============== ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from birdie_zmq.engine.planning import fork_planner, row_planner, tree_planner
from birdie_zmq.engine.planning.pair_planner import PairGroup
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, Shape
from birdie_zmq.engine.planning.steps import ScoredSequence, Step


class SequenceGroup(Protocol):
    """Sequences that are planned together, with what they share."""

    @property
    def distinct_tokens(self) -> int:
        """The number of tokens that a model of this mode must compute at least."""
        ...

    def plan(self, buckets: Buckets, cached: Mapping[bytes, int]) -> list[Step]:
        """Plan the steps that score the sequences; the owners of a step are indices of the sequences.

        Args:
            buckets: The shapes that steps may have.
            cached: For each prefix with a cached state, as the bytes of its tokens, the state's capacity in tokens.
        """
        ...


@dataclass(frozen=True)
class ExecutionMode:
    """How a model computes.

    Attributes:
        name: The name of the mode.
        decodes_with_cache: Whether the model has a state, so that generation decodes one position per token.
        calls_score: Whether steps call the model's own `score`. Such a step has one target per sequence instead of one
            per scored token, and may hold the logits of all its positions.
        keeps_entries: Whether a step of prompts keeps what a state holds of each token, instead of whole states.
        group: Groups sequences, with rows of 1 to `Buckets.max_length` tokens, to be planned together.
        shapes: Returns every ``(rows, length)`` that a step can have.
    """

    name: str
    decodes_with_cache: bool
    calls_score: bool
    keeps_entries: bool
    group: Callable[[Sequence[ScoredSequence]], SequenceGroup]
    shapes: Callable[[Buckets], frozenset[Shape]]


@dataclass(frozen=True)
class _TreeGroup:
    """Sequences as a prefix tree, and the planner of the mode."""

    planner: Callable[[PrefixTree, Buckets, Mapping[bytes, int]], list[Step]]
    tree: PrefixTree

    @property
    def distinct_tokens(self) -> int:
        """The number of distinct tokens."""
        return self.tree.distinct_tokens()

    def plan(self, buckets: Buckets, cached: Mapping[bytes, int]) -> list[Step]:
        """Plan the steps that score the sequences."""
        return self.planner(self.tree, buckets, cached)


def _group(
    planner: Callable[[PrefixTree, Buckets, Mapping[bytes, int]], list[Step]], items: Sequence[ScoredSequence]
) -> SequenceGroup:
    return _TreeGroup(planner, PrefixTree(items))


ROWS = ExecutionMode(
    "rows",
    decodes_with_cache=False,
    calls_score=False,
    keeps_entries=False,
    group=partial(_group, row_planner.plan_rows),
    shapes=lambda buckets: buckets.shapes,
)
FORKS = ExecutionMode(
    "forks",
    decodes_with_cache=True,
    calls_score=False,
    keeps_entries=False,
    group=partial(_group, fork_planner.plan_forks),
    shapes=fork_planner.possible_shapes,
)
TREES = ExecutionMode(
    "trees",
    decodes_with_cache=True,
    calls_score=False,
    keeps_entries=True,
    group=partial(_group, tree_planner.plan_trees),
    shapes=tree_planner.possible_shapes,
)
PAIRS = ExecutionMode(
    "pairs",
    decodes_with_cache=False,
    calls_score=True,
    keeps_entries=False,
    group=PairGroup,
    shapes=lambda buckets: buckets.shapes,
)
