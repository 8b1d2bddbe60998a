"""Splitting the batches of a short call, so that no worker is idle.

Work stealing is no substitute: a worker computes the texts of a batch in its own order, so if another worker duplicates some
of them, the first worker still needs nearly all of its steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from birdie_zmq.types import GenerateWork, LogLikelihoodWork, RollingWork, Work

MIN_ITEMS = 32
_MIN_CHARACTERS = 16_000
"""A batch below both minimums hardly fills a step, and each batch computes its shared text again."""


def split_batch(work: Work, count: int) -> list[list[int]]:
    """Split the items of a batch into at most ``count`` parts with about the same number of characters.

    A part has at least 32 items or 16,000 characters. Neighbours with the same context stay together, and their context
    counts once.
    """
    groups = list(_groups(work))
    total = sum(size for _, size in groups)
    count = min(count, max(len(work) // MIN_ITEMS, total // _MIN_CHARACTERS))
    if count < 2:
        return [list(range(len(work)))]
    parts: list[list[int]] = [[]]
    done = 0
    for group, size in groups:
        # The middle of a group decides which part it goes to.
        if parts[-1] and (2 * done + size) * count >= 2 * total * len(parts):
            parts.append([])
        parts[-1] += group
        done += size
    return parts


def _groups(work: Work) -> Iterator[tuple[list[int], int]]:
    """Yield groups of items that must stay together, with their characters; at least one, since texts may be empty."""
    match work:
        case LogLikelihoodWork(pairs=pairs):
            for context, group in groupby(range(len(pairs)), lambda item: pairs[item][0]):
                items = list(group)
                yield items, len(context) + sum(len(pairs[item][1]) for item in items) + 1
        case RollingWork(texts=texts) | GenerateWork(prompts=texts):
            for item, text in enumerate(texts):
                yield [item], len(text) + 1
        case _:
            for item in range(len(work)):
                yield [item], 1
