"""What a broker remembers for a person who looks at it: counts, how fast work went lately, and what went wrong last.

Nothing here decides anything, and all of it is bounded, whatever peers send.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from birdie_zmq.broker.rate_limits import one_line
from birdie_zmq.types import ComputeCounters

BUCKET_S = 2.0
BUCKETS = 300
"""Ten minutes of them."""

_MOST_HAPPENINGS = 50
_MOST_TEXT = 240
_MOST_COUNT = 2**53 - 1
"""What a worker says that it has computed is added up; a number in JSON holds this much."""

Kind = Literal["lost", "failed", "gone", "refused"]


@dataclass(frozen=True)
class Rates:
    """Per second, for each bucket of ``bucket_s``, the oldest first; the bucket that is not over yet is left out."""

    bucket_s: float
    requests: Sequence[float]
    tokens: Sequence[float]
    padding: Sequence[float]


class Throughput:
    """A ring of counts.

    Args:
        buckets: How many are remembered.
        bucket_s: How long each is.
    """

    def __init__(self, buckets: int = BUCKETS, bucket_s: float = BUCKET_S) -> None:
        self._buckets = buckets
        self._bucket_s = bucket_s
        self._counts: OrderedDict[int, list[int]] = OrderedDict()

    def add(self, now: float, *, requests: int = 0, tokens: int = 0, padding: int = 0) -> None:
        """Count what has just been done, at a time that never goes back."""
        number = int(now // self._bucket_s)
        counts = self._counts.get(number)
        if counts is None:
            counts = self._counts[number] = [0, 0, 0]
            while next(iter(self._counts)) < number - self._buckets:
                self._counts.popitem(last=False)
        counts[0] += requests
        counts[1] += tokens
        counts[2] += padding

    def rates(self, now: float) -> Rates:
        """What was done in each of the last buckets."""
        current = int(now // self._bucket_s)
        nothing = (0, 0, 0)
        rows = [self._counts.get(number, nothing) for number in range(current - self._buckets, current)]
        requests, tokens, padding = (
            tuple(round(row[kind] / self._bucket_s, 2) for row in rows) for kind in range(len(nothing))
        )
        return Rates(self._bucket_s, requests, tokens, padding)


@dataclass
class HistoryEntry:
    """What went wrong, how often, and when last."""

    kind: Kind
    text: str
    at: float
    count: int = 1


class History:
    """Counts since the broker was started, the throughput, and the last happenings, the latest one last."""

    def __init__(self) -> None:
        self.requests_answered = 0
        self.requests_failed = 0
        self.batches_answered = 0
        self.refusals = 0
        self.total = ComputeCounters()
        self.throughput = Throughput()
        self._happenings: OrderedDict[tuple[Kind, str], HistoryEntry] = OrderedDict()

    @property
    def happenings(self) -> list[HistoryEntry]:
        """What went wrong; the same again is one of them, with a count."""
        return list(self._happenings.values())

    def happened(self, kind: Kind, text: str, now: float) -> None:
        """Something went wrong; the text has no text of a request in it."""
        text = one_line(text, _MOST_TEXT)
        again = self._happenings.pop((kind, text), None)
        self._happenings[kind, text] = HistoryEntry(kind, text, now, 1 if again is None else again.count + 1)
        if len(self._happenings) > _MOST_HAPPENINGS:
            self._happenings.popitem(last=False)

    def answered(self, requests: int, now: float, *, is_whole: bool) -> None:
        """Requests were answered; ``is_whole`` if nothing of their batch is left."""
        self.requests_answered += requests
        self.batches_answered += is_whole
        self.throughput.add(now, requests=requests)

    def failed(self, requests: int, text: str, now: float) -> None:
        """Requests will have no answer."""
        self.requests_failed += requests
        self.happened("failed", text, now)

    def refused(self, code: str, now: float, *, is_ordinary: bool) -> None:
        """A message was refused; an ordinary refusal is counted and no more."""
        self.refusals += 1
        if not is_ordinary:
            self.happened("refused", code, now)

    def computed(self, before: ComputeCounters | None, after: ComputeCounters, now: float) -> None:
        """A worker says what it has computed; what it had before it came here is another broker's."""
        if before is None:
            return
        added = after.since(before)
        self.total = (self.total + added).at_most(_MOST_COUNT)
        if added.tokens or added.padding:
            self.throughput.add(now, tokens=added.tokens, padding=added.padding)
