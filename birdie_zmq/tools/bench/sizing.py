"""Chooses the number of documents of a pass, until a pass has the requested duration and compiles nothing. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_GROWTH = 8.0
"""Maximum growth from pass to pass: the speed with few documents is a poor prediction for many."""
_TOLERANCE = 2.0
"""A pass that takes between half and twice the requested duration is accepted."""
_MAX_REPEATS = 3
_MAX_PASSES = 12
_MIN_S = 1e-3


@dataclass
class PassSizer:
    """The sizes of the passes of one workload.

    Args:
        seconds: Requested duration of a pass.
        documents: Number of documents of the first pass.
        max_documents: Maximum number of documents per pass, None for no limit.
    """

    seconds: float
    documents: int
    max_documents: int | None = None

    def __post_init__(self) -> None:
        self.documents = self._limit(self.documents)
        self._passes = 0
        self._repeats = 0

    def accepts(self, wall_s: float, compiled: bool) -> bool:
        """Return whether the pass is the final one; if not, set `documents` to the size of the next pass.

        A pass with compilation is repeated, since tracing and first calls take extra time. The number of repeats is
        bounded, because every text has a new shape for some models.

        Args:
            wall_s: Duration of the pass in seconds.
            compiled: Whether the pass compiled something.
        """
        self._passes += 1
        if self._passes >= _MAX_PASSES:
            return True
        current = self.documents
        ratio = self.seconds / max(wall_s, _MIN_S)
        if not 1 / _TOLERANCE <= ratio <= _TOLERANCE:
            self.documents = self._limit(int(current * min(ratio, _MAX_GROWTH)))
        if self.documents != current:
            self._repeats = 0
            return False
        self._repeats += 1
        return not compiled or self._repeats > _MAX_REPEATS

    def _limit(self, documents: int) -> int:
        return max(1, min(documents, self.max_documents or documents))
