"""Sends the results of each checkpoint to experiment trackers: lm_eval's own loggers for W&B and Trackio, and TensorBoard."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from birdie_zmq.errors import UsageError
from birdie_zmq.sanitize import first_line
from birdie_zmq.tools.watch.core import Sighting
from birdie_zmq.tools.watch.evaluation import Evaluated
from birdie_zmq.tools.watch.results import scalars

logger = logging.getLogger("birdie_zmq.watch")


class Tracker(Protocol):
    """An experiment tracker."""

    def log(self, step: int, evaluated: Evaluated) -> None:
        """Log the results of a step."""
        ...

    def close(self) -> None:
        """Send the values that were not sent yet."""
        ...


class LmEvalLogger:
    """One of lm_eval's own loggers, which logs all checkpoints into one run of the tracker.

    Args:
        name: The logger's class in `lm_eval.loggers`.
        arguments: The positional arguments of that class; the first one has the arguments of the tracker's ``init``.
    """

    def __init__(self, name: str, *arguments: Mapping[str, Any]) -> None:
        # Imported here: they import the tracker.
        logger_class = getattr(importlib.import_module("lm_eval.loggers"), name)
        first, *others = map(dict, arguments)
        self._logger = logger_class({**first, "step": 0}, *others)

    def log(self, step: int, evaluated: Evaluated) -> None:
        """Log the results as lm_eval does at the end of a run, at this step."""
        self._logger.step = step
        self._logger.post_init(dict(evaluated.results))
        self._logger.log_eval_result()

    def close(self) -> None:
        """Finish the run of the tracker."""
        finish = getattr(self._logger, "finish", None) or self._logger.run.finish
        finish()


class TensorBoard:
    """Event files for TensorBoard, with a scalar ``task/metric`` for each metric.

    Args:
        folder: The folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))

    def log(self, step: int, evaluated: Evaluated) -> None:
        """Log the metrics, and their standard errors as ``task/metric_stderr``."""
        for name, value in scalars(evaluated.measured.metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Trackers:
    """All trackers of a watch. What goes wrong in one is logged and ends neither the watch nor the others.

    Args:
        trackers: The trackers.
    """

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def recorded(self, sighting: Sighting, evaluated: Evaluated | None) -> None:
        """Log a checkpoint that has been evaluated."""
        for tracker in self._trackers if evaluated is not None else ():
            try:
                assert evaluated is not None
                tracker.log(sighting.step, evaluated)
            except Exception as error:  # noqa: BLE001 - a tracker may raise anything
                logger.warning("step %d is not logged to %s: %s", sighting.step, _name(tracker), first_line(error))

    def close(self) -> None:
        """Close all trackers."""
        for tracker in self._trackers:
            with contextlib.suppress(Exception):
                tracker.close()


def _name(tracker: Tracker) -> str:
    inner = getattr(tracker, "_logger", tracker)
    return type(inner).__name__


def open_trackers(config: Any, tensorboard: Path | None) -> Trackers:
    """Open the trackers that the options of lm_eval and of the watch name.

    Args:
        config: lm_eval's configuration.
        tensorboard: The folder for TensorBoard; None for none.

    Raises:
        UsageError: The package of a tracker is not installed.
    """
    wandb, trackio = config.wandb_args, getattr(config, "trackio_args", None)
    opened: list[Tracker] = []
    if wandb:
        _check_installed("wandb", "--wandb_args")
        opened.append(LmEvalLogger("WandbLogger", wandb, config.wandb_config_args or {}))
    if trackio:
        _check_installed("trackio", "--trackio_args")
        opened.append(LmEvalLogger("TrackioLogger", trackio))
    if tensorboard is not None:
        _check_installed("tensorboardX", "--tensorboard")
        opened.append(TensorBoard(tensorboard))
    return Trackers(*opened)


def _check_installed(package: str, option: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{option} needs the package {package}; run: pip install {package}")
