"""Statistics of a broker for its status page: totals, recent throughput, and the latest problems.

The broker makes no decision from these records, and all of them are bounded, whatever peers send.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from birdie_zmq.sanitize import one_line
from birdie_zmq.types import ComputeCounters

BUCKET_S = 2.0
BUCKETS = 300
"""Number of buckets, which cover ten minutes."""

_MAX_ENTRIES = 50
_MAX_TEXT_CHARS = 240
_MAX_COUNT = 2**53 - 1
"""The largest integer that every JSON reader represents exactly; sums of worker counters are limited to it."""

Kind = Literal["crashed", "failed", "disconnected", "refused"]


@dataclass(frozen=True)
class Rates:
    """Rates per second in each bucket of ``bucket_s`` seconds, oldest first, without the bucket that is still open."""

    bucket_s: float
    requests: Sequence[float]
    tokens: Sequence[float]
    padding: Sequence[float]


class Throughput:
    """A ring buffer of counts per time bucket.

    Args:
        buckets: Number of buckets that are kept.
        bucket_s: Length of a bucket in seconds.
    """

    def __init__(self, buckets: int = BUCKETS, bucket_s: float = BUCKET_S) -> None:
        self._buckets = buckets
        self._bucket_s = bucket_s
        self._counts: OrderedDict[int, list[int]] = OrderedDict()

    def add(self, now: float, *, requests: int = 0, tokens: int = 0, padding: int = 0) -> None:
        """Add to the counts of the current bucket; ``now`` must not decrease between calls."""
        index = int(now // self._bucket_s)
        counts = self._counts.get(index)
        if counts is None:
            counts = self._counts[index] = [0, 0, 0]
            while next(iter(self._counts)) < index - self._buckets:
                self._counts.popitem(last=False)
        counts[0] += requests
        counts[1] += tokens
        counts[2] += padding

    def rates(self, now: float) -> Rates:
        """Return the rates of the last buckets."""
        current = int(now // self._bucket_s)
        empty = (0, 0, 0)
        rows = [self._counts.get(index, empty) for index in range(current - self._buckets, current)]
        requests, tokens, padding = (
            tuple(round(row[kind] / self._bucket_s, 2) for row in rows) for kind in range(len(empty))
        )
        return Rates(self._bucket_s, requests, tokens, padding)


@dataclass
class HistoryEntry:
    """A kind of problem: its text, its number of occurrences, and the time of the last one in monotonic seconds."""

    kind: Kind
    text: str
    at: float
    count: int = 1


class History:
    """Totals since the start of the broker, its throughput, and its latest problems.

    ``model_switches`` counts the switches of workers from one model to another, ``retries`` the leases that ended with a
    crash of their worker or model process and were retried.
    """

    def __init__(self) -> None:
        self.requests_answered = 0
        self.requests_failed = 0
        self.batches_answered = 0
        self.refusals = 0
        self.model_switches = 0
        self.retries = 0
        self.compute_total = ComputeCounters()
        self.throughput = Throughput()
        self._entries: OrderedDict[tuple[Kind, str], HistoryEntry] = OrderedDict()

    @property
    def entries(self) -> list[HistoryEntry]:
        """The latest problems, newest last; equal problems share one entry with a count."""
        return list(self._entries.values())

    def record(self, kind: Kind, text: str, now: float) -> None:
        """Record a problem; ``text`` must not contain texts of requests."""
        text = one_line(text, _MAX_TEXT_CHARS)
        previous = self._entries.pop((kind, text), None)
        self._entries[kind, text] = HistoryEntry(kind, text, now, 1 if previous is None else previous.count + 1)
        if len(self._entries) > _MAX_ENTRIES:
            self._entries.popitem(last=False)

    def record_answers(self, requests: int, now: float, *, is_batch_complete: bool) -> None:
        """Count answered requests; ``is_batch_complete`` tells whether they complete their batch."""
        self.requests_answered += requests
        self.batches_answered += is_batch_complete
        self.throughput.add(now, requests=requests)

    def record_failure(self, requests: int, text: str, now: float) -> None:
        """Count failed requests, and record the reason."""
        self.requests_failed += requests
        self.record("failed", text, now)

    def record_refusal(self, code: str, now: float, *, is_expected: bool) -> None:
        """Count a refused message; an expected refusal is not recorded as a problem."""
        self.refusals += 1
        if not is_expected:
            self.record("refused", code, now)

    def record_compute(self, before: ComputeCounters | None, after: ComputeCounters, now: float) -> None:
        """Add the increase between two heartbeats of a worker.

        The first heartbeat of a worker adds nothing: its counters may include work for another broker.
        """
        if before is None:
            return
        added = after.since(before)
        self.compute_total = (self.compute_total + added).at_most(_MAX_COUNT)
        if added.tokens or added.padding:
            self.throughput.add(now, tokens=added.tokens, padding=added.padding)
