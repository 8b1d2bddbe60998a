"""The events of a call, and their collection into answers in order."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator

from birdie_zmq.client.actions import Deliver, DeliverParts, FailItem, ReportProgress
from birdie_zmq.client.progress import Progress
from birdie_zmq.errors import BirdieError, ProtocolError
from birdie_zmq.types import Answer

logger = logging.getLogger("lm_eval.birdie_zmq")

CallEvent = Deliver | DeliverParts | FailItem | Progress | ReportProgress


class AnswerCollector:
    """The answers and the failed items of one call.

    Args:
        count: The number of items, which are numbered from 0.
        name_of: Returns the user's name for an item, for messages about an item that fails.
    """

    def __init__(self, count: int, name_of: Callable[[int], str] = "item {}".format) -> None:
        self._count = count
        self._name_of = name_of
        self._answers: dict[int, Answer] = {}
        self._failures: dict[int, BirdieError] = {}

    def add(self, event: CallEvent) -> None:
        """Record answers or a failed item; the failure of one of several items is logged at once."""
        match event:
            case Deliver(items, answers):
                self._answers.update(zip(items, answers, strict=True))
            case FailItem(item, error):
                self._failures[item] = error
                if self._count > 1:
                    logger.warning("%s has no answer: %s", self._name_of(item), error.message)
            case DeliverParts() | Progress() | ReportProgress():
                pass

    def result(self) -> list[Answer]:
        """Return the answers by number.

        Raises:
            BirdieError: Items have failed: the error of the first one, with the number of the others.
            ProtocolError: An item has no answer.
        """
        if self._failures:
            raise self._combined_failure()
        if len(self._answers) != self._count:
            raise ProtocolError(f"the broker answered {len(self._answers)} of {self._count} items")
        return [self._answers[item] for item in range(self._count)]

    def _combined_failure(self) -> BirdieError:
        failures = self._failures
        item, first = next(iter(failures.items()))
        if self._count == 1:
            return first
        others = f", and {len(failures) - 1} more failed (see above)" if len(failures) > 1 else ""
        answered = f"{len(self._answers)} of {self._count} requests were answered"
        text = f"{self._name_of(item)} has no answer{others}; {answered}. {first.message}"
        combined = type(first)(text, remote_traceback=first.remote_traceback)
        combined.__cause__ = first.__cause__  # the user's own exception, if it was raised in this process
        return combined


def collect(events: Generator[CallEvent, None, None], count: int) -> list[Answer]:
    """Return the answers of a call to `count` items, by number.

    Raises:
        BirdieError: As the generator, and as `AnswerCollector.result`.
    """
    collector = AnswerCollector(count)
    with contextlib.closing(events):
        for event in events:
            collector.add(event)
    return collector.result()
