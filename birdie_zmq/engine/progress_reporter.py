"""The progress of an evaluator since the last report."""

from __future__ import annotations

from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.types import ComputeCounters


class ProgressReporter:
    """Reports what an evaluator has computed since the last report; called in the thread in which it computes."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._reported = evaluator.computed

    def since_last(self) -> ComputeCounters:
        """Return what was computed since the last call, or since this object was made."""
        before, self._reported = self._reported, self._evaluator.computed
        return self._reported.since(before)
