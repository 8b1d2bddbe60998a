"""The batches of a short call are cut, so that no worker has nothing to do.

That a worker without work takes over from another is no substitute: a batch that is being computed goes through its texts in
an order of its own, so whichever of them another computes as well, nearly all of its steps are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from birdie_zmq.types import GenerateWork, LogLikelihoodWork, RollingWork, Work

LEAST_ITEMS = 32
_LEAST_CHARACTERS = 16_000
"""Less of both is not worth a batch of its own: it hardly fills a step, and what texts share is computed in each batch."""


def cut(work: Work, count: int) -> list[list[int]]:
    """The items of a batch in at most ``count`` runs of about as many characters, of 32 items or 16,000 of them at least.

    Neighbours with the same context stay together, and it counts once.
    """
    groups = list(_groups(work))
    total = sum(size for _, size in groups)
    count = min(count, max(len(work) // LEAST_ITEMS, total // _LEAST_CHARACTERS))
    if count < 2:
        return [list(range(len(work)))]
    runs: list[list[int]] = [[]]
    done = 0
    for group, size in groups:
        # The middle of a group says in which run it is.
        if runs[-1] and (2 * done + size) * count >= 2 * total * len(runs):
            runs.append([])
        runs[-1] += group
        done += size
    return runs


def _groups(work: Work) -> Iterator[tuple[list[int], int]]:
    """Items that belong together, and their characters; one at least, since texts may be empty."""
    match work:
        case LogLikelihoodWork(pairs=pairs):
            for context, group in groupby(range(len(pairs)), lambda item: pairs[item][0]):
                alike = list(group)
                yield alike, len(context) + sum(len(pairs[item][1]) for item in alike) + 1
        case RollingWork(texts=texts) | GenerateWork(prompts=texts):
            for item, text in enumerate(texts):
                yield [item], len(text) + 1
        case _:
            for item in range(len(work)):
                yield [item], 1
