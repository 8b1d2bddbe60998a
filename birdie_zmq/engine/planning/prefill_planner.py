"""The plan for prefilling prompts before generation: shared prefixes once, in chunks of a few sizes. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from birdie_zmq.engine.planning.chunks import chunk_sizes
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import MIN_LENGTH, PREFILL_CHUNK_SIZES
from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens


class PrefillChunk(NamedTuple):
    """Tokens ``[begin, end)`` of a prompt, prefilled by one step of `size` positions.

    ``is_cached`` says whether the state after the chunk is cached, because other prompts share the prefix up to `end`.
    """

    begin: int
    end: int
    size: int
    is_cached: bool


class PrefillPlan(NamedTuple):
    """The index of a prompt, and its chunks. They leave out the last token, since decoding starts with it."""

    number: int
    chunks: tuple[PrefillChunk, ...]

    @property
    def capacity(self) -> int:
        """The capacity in tokens that the chunks need, padding included."""
        return max((chunk.begin + chunk.size for chunk in self.chunks), default=0)


def plan_prefills(prompts: Sequence[Tokens], call_tokens: int) -> list[PrefillPlan]:
    """Split prompts int32[n], n > 0, into chunks, in an order in which prompts with a common prefix are neighbours.

    A shared prefix is cached if prefilling it again for each of its prompts would cost more than `call_tokens` tokens, the
    fixed cost of one call.
    """
    tree = PrefixTree([ScoredSequence(prompt, 1) for prompt in prompts])
    plans = []
    for shared, row in _shared_prefixes(tree, call_tokens):
        chunks = tuple(_chunks(shared, len(tree.rows[row]), call_tokens))
        plans += [PrefillPlan(number, chunks) for number in tree.owners[row]]
    return plans


def _shared_prefixes(tree: PrefixTree, call_tokens: int) -> list[tuple[tuple[int, ...], int]]:
    """Return the lengths of the prefixes worth caching, and the index, of each row of the tree in order."""
    found = []
    waiting: list[tuple[int, int, tuple[int, ...]]] = [(0, len(tree.rows), ())] if tree.rows else []
    while waiting:
        first, last, shared = waiting.pop()
        base = shared[-1] if shared else 0
        depth = tree.depth(first, last)
        sharing = sum(len(owners) for owners in tree.owners[first:last])
        if depth - base >= MIN_LENGTH and (sharing - 1) * (depth - base) > 2 * call_tokens:
            shared = (*shared, depth)
        if last - first == 1:
            found.append((shared, first))
        else:
            waiting += [(begin, end, shared) for begin, end in reversed(list(tree.children(first, last)))]
    return found


def _chunks(shared: tuple[int, ...], length: int, call_tokens: int) -> list[PrefillChunk]:
    chunks: list[PrefillChunk] = []
    at = 0
    for target in dict.fromkeys((*shared, length)):
        for size in chunk_sizes(target - at, PREFILL_CHUNK_SIZES, call_tokens) if target > at else ():
            end = min(at + size, target)
            chunks.append(PrefillChunk(at, end, size, is_cached=end == target and target in shared))
            at = end
    return chunks
