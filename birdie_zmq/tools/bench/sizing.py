"""How many documents a pass has: more and more, until one takes about as long as it should and nothing is compiled. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_MOST_GROWTH = 8.0
"""Few documents say little of how long many take."""
_NEAR = 2.0
"""A pass that takes between a half and twice the seconds that it was to take is near enough."""
_MOST_AGAIN = 3
_MOST_PASSES = 12
_LEAST_S = 1e-3


@dataclass
class Sizing:
    """The passes of one workload.

    Args:
        seconds: How long a pass is to take.
        documents: Those of the first pass.
        most: The most documents of a pass, None for no bound.
    """

    seconds: float
    documents: int
    most: int | None = None

    def __post_init__(self) -> None:
        self.documents = self._bounded(self.documents)
        self._passes = 0
        self._again = 0

    def counts(self, wall_s: float, compiled: bool) -> bool:
        """Whether the pass that was made is the one that counts; if not, `documents` says how many the next one has.

        A pass in which something was compiled is made again, since tracing and first calls take time as well. But that is
        given up in the end: to some models each text is of another shape.

        Args:
            wall_s: Seconds that it took.
            compiled: Whether something was compiled in it.
        """
        self._passes += 1
        if self._passes >= _MOST_PASSES:
            return True
        now = self.documents
        ratio = self.seconds / max(wall_s, _LEAST_S)
        if not 1 / _NEAR <= ratio <= _NEAR:
            self.documents = self._bounded(int(now * min(ratio, _MOST_GROWTH)))
        if self.documents != now:
            self._again = 0
            return False
        self._again += 1
        return not compiled or self._again > _MOST_AGAIN

    def _bounded(self, documents: int) -> int:
        return max(1, min(documents, self.most or documents))
