"""What an evaluator has come on by since that was asked last."""

from __future__ import annotations

from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.types import ProgressDelta


class ProgressReporter:
    """Asks an evaluator, in the thread in which it computes."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._told = evaluator.computed

    def since_last(self) -> ProgressDelta:
        """What is new since this was called last, or since this was made."""
        before, self._told = self._told, self._evaluator.computed
        return self._evaluator.advance(self._told.since(before))
