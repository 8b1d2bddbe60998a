"""How prompts are read before they are continued: what they share once, and all in pieces of few lengths. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from birdie_zmq.engine.planning.prefix_tree import PrefixTree, long_pieces
from birdie_zmq.engine.planning.shape_buckets import PROMPT_PIECES, SHORTEST
from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens


class PrefillChunk(NamedTuple):
    """Tokens ``[begin, end)`` of a prompt, which one step of `size` positions reads.

    After it the prompt's beginning is kept, if others share it.
    """

    begin: int
    end: int
    size: int
    is_kept: bool


class PrefillPlan(NamedTuple):
    """The number of a prompt, and its pieces; the last token is not among them, as decoding begins with it."""

    number: int
    pieces: tuple[PrefillChunk, ...]

    @property
    def slots(self) -> int:
        """How many slots of a state the pieces need, padding included."""
        return max((piece.begin + piece.size for piece in self.pieces), default=0)


def plan_prefills(prompts: Sequence[Tokens], overhead: int) -> list[PrefillPlan]:
    """Cut prompts int32[n], n > 0, into pieces; in an order in which those that begin alike are neighbours.

    A beginning is worth keeping if reading it again for all that share it would cost more than `overhead` tokens, which
    is what a call costs beyond its own.
    """
    tree = PrefixTree([ScoredSequence(prompt, 1) for prompt in prompts])
    found = []
    for shared, row in _shared_prefixes(tree, overhead):
        pieces = tuple(_pieces(shared, len(tree.rows[row]), overhead))
        found += [PrefillPlan(number, pieces) for number in tree.owners[row]]
    return found


def _shared_prefixes(tree: PrefixTree, overhead: int) -> list[tuple[tuple[int, ...], int]]:
    """For each row of the tree, in its order: the lengths of the beginnings that are worth keeping, and its number."""
    found = []
    waiting: list[tuple[int, int, tuple[int, ...]]] = [(0, len(tree.rows), ())] if tree.rows else []
    while waiting:
        first, last, shared = waiting.pop()
        base = shared[-1] if shared else 0
        depth = tree.depth(first, last)
        sharing = sum(len(owners) for owners in tree.owners[first:last])
        if depth - base >= SHORTEST and (sharing - 1) * (depth - base) > 2 * overhead:
            shared = (*shared, depth)
        if last - first == 1:
            found.append((shared, first))
        else:
            waiting += [(begin, end, shared) for begin, end in reversed(list(tree.children(first, last)))]
    return found


def _pieces(shared: tuple[int, ...], length: int, overhead: int) -> list[PrefillChunk]:
    pieces: list[PrefillChunk] = []
    at = 0
    for target in dict.fromkeys((*shared, length)):
        for size in long_pieces(target - at, PROMPT_PIECES, overhead) if target > at else ():
            end = min(at + size, target)
            pieces.append(PrefillChunk(at, end, size, is_kept=end == target and target in shared))
            at = end
    return pieces
