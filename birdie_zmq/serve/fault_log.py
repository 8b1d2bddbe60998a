"""Logging of faults without the texts of requests: the message of an error may quote one, the frames do not."""

from __future__ import annotations

import logging
import traceback


def log_fault(logger: logging.Logger, what: str, error: Exception) -> None:
    """Log the type of an error, and where it was raised."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s with %s\n%s", what, type(error).__name__, frames)
