"""What becomes of a part whose worker or model process died while it was at it.

Most deaths have nothing to do with what was computed: somebody killed a process, or a machine went away. So the part is
first tried once more as it is. A part that is lost again is halved, and halved again, until the request that kills
processes is alone; when it has done so often enough, it is given up, and all others have their answers.

One half is halved to the end before the other is tried: so an answer comes after as many losses as halving takes, however
many such requests there are, and a model that dies at anything can be told from requests that kill it.
"""

from __future__ import annotations

from birdie_zmq.broker.scheduler import SubBatch

_LEAST_LOSSES_ALONE = 2
"""A request that was lost in company before is not given up for one death that it may have met by chance."""


def split_for_retry(part: SubBatch, max_losses: int) -> list[SubBatch]:
    """Count a loss against a part that is not settled: the parts to be tried next.

    Args:
        part: What was lost.
        max_losses: How often a request may be lost before it is given up.

    Returns:
        The same part once more, or its halves, in the order in which they are to be tried; nothing where it is one
        request that has to be given up.
    """
    part.losses += 1
    items = [item for item in part.items if item not in part.batch.settled]
    if len(items) == 1:
        part.losses_alone += 1
        return [] if part.losses >= max_losses and part.losses_alone >= _LEAST_LOSSES_ALONE else [part]
    if part.losses == 1:
        return [part]
    middle = len(items) // 2
    return [SubBatch(part.batch, half, part.attempts, part.losses) for half in (items[:middle], items[middle:])]
