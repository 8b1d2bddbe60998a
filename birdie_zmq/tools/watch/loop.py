"""The loop of a watch: scans, evaluates what `core` chooses, and records the results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from birdie_zmq.errors import EngineError, ModelError, UserModuleError
from birdie_zmq.sanitize import first_line
from birdie_zmq.tools.watch.core import End, Evaluate, Finished, Note, Record, Scanned, Sighting, Status, WatchCore
from birdie_zmq.tools.watch.evaluation import Evaluated, Evaluation
from birdie_zmq.tools.watch.results import ResultsFile
from birdie_zmq.tools.watch.scanning import Scanner, state_of

logger = logging.getLogger("birdie_zmq.watch")


class Observer(Protocol):
    """What is told about each recorded checkpoint, such as a table or a tracker."""

    def recorded(self, sighting: Sighting, evaluated: Evaluated | None) -> None:
        """Handle a checkpoint whose results have just been recorded; None if it has none."""
        ...


@dataclass(frozen=True)
class Watch:
    """The parts of a watch.

    Attributes:
        core: Decides.
        scanner: Finds the checkpoints.
        evaluation: Evaluates one.
        results: Records the results.
        stop_file: The watch ends when there is such a file.
        poll_s: Seconds between two scans.
    """

    core: WatchCore
    scanner: Scanner
    evaluation: Evaluation
    results: ResultsFile
    stop_file: Path
    poll_s: float


def follow(watch: Watch, observers: list[Observer], sleep: Callable[[float], None] = time.sleep) -> str:
    """Follow a run until the core ends it, and return the reason.

    Raises:
        BirdieError: Something other than a checkpoint is at fault: an option, a broker, the user module.
    """
    unnamed_noted: set[str] = set()
    logger.info("watching %s", watch.scanner.pattern)
    while True:
        sightings, unnamed = watch.scanner.scan()
        for path in sorted(set(unnamed) - unnamed_noted):
            logger.warning("%s is left out: its name has no step; --step-pattern says where it is", path)
        unnamed_noted.update(unnamed)
        actions = watch.core.handle(Scanned(sightings, watch.stop_file.exists()), time.monotonic())
        has_evaluated = False
        for action in actions:
            match action:
                case Note(text):
                    logger.info(text)
                case Record(sighting, status):
                    _record(watch, observers, sighting, status)
                case Evaluate(sighting):
                    has_evaluated = True
                    status = _evaluate(watch, observers, sighting)
                    watch.core.handle(Finished(sighting, status), time.monotonic())
                case End(reason):
                    return reason
        if not has_evaluated:
            sleep(watch.poll_s)


def _evaluate(watch: Watch, observers: list[Observer], sighting: Sighting) -> Status:
    """Evaluate a checkpoint, record what became of it, and return that."""
    logger.info("evaluating step %d (%s)", sighting.step, sighting.path)
    try:
        evaluated = watch.evaluation.evaluate(sighting)
    except (EngineError, UserModuleError):
        raise
    except ModelError as error:
        status = _status_of_failure(sighting)
        logger.warning("step %d is %s: %s", sighting.step, status, first_line(error))
        if status != "changed":
            _record(watch, observers, sighting, status, first_line(error))
        return status
    watch.results.add(sighting, "evaluated", evaluated.measured)
    watch.evaluation.forget_answers()
    for observer in observers:
        observer.recorded(sighting, evaluated)
    return "evaluated"


def _status_of_failure(sighting: Sighting) -> Status:
    """Return why a checkpoint could not be evaluated: it is gone, it was written meanwhile, or it is at fault itself."""
    if not Path(sighting.path).exists():
        return "deleted"
    return "failed" if state_of(Path(sighting.path)) == sighting.state else "changed"


def _record(
    watch: Watch, observers: list[Observer], sighting: Sighting, status: Status, error: str | None = None
) -> None:
    if status == "deleted":
        logger.warning("step %d was deleted before it was evaluated", sighting.step)
    watch.results.add(sighting, status, error=error)
    for observer in observers:
        observer.recorded(sighting, None)
