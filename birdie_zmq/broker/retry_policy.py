"""The retry policy: how often a sub-batch is computed again after a crash, and when it is split.

Most crashes of a worker or model process have nothing to do with its sub-batch: the process was killed, or its machine
went down. So the sub-batch is first retried as it is. After a second crash it is split in halves, and these are split
again, until the request that kills processes (the poison request) is alone. That request is abandoned after a limited
number of crashes, and all other requests get their answers.

The halves are searched depth-first: one half is split to the end before the other half is tried. So at most one descent
of crashes passes without an answer, however many poison requests there are. A longer series of crashes means that the
model dies at every request.
"""

from __future__ import annotations

from birdie_zmq.broker.scheduler import SubBatch

_MIN_CRASHES_ALONE = 2
"""Minimum number of crashes with a request alone before it is abandoned, since a single crash may be a coincidence."""


def split_for_retry(sub_batch: SubBatch, max_crashes: int) -> list[SubBatch]:
    """Count a crash against a sub-batch that is not settled, and return the sub-batches to try next.

    Args:
        sub_batch: The sub-batch whose worker or model process died.
        max_crashes: Number of crashes after which a request is abandoned.

    Returns:
        The same sub-batch, or its halves in the order in which to try them; an empty list if its only unsettled request
        is abandoned.
    """
    sub_batch.crashes += 1
    items = sub_batch.unsettled
    if len(items) == 1:
        sub_batch.crashes_alone += 1
        is_poison = sub_batch.crashes >= max_crashes and sub_batch.crashes_alone >= _MIN_CRASHES_ALONE
        return [] if is_poison else [sub_batch]
    if sub_batch.crashes == 1:
        return [sub_batch]
    middle = len(items) // 2
    halves = items[:middle], items[middle:]
    return [SubBatch(sub_batch.batch, half, sub_batch.attempts, sub_batch.crashes) for half in halves]
