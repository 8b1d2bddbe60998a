"""The progress bar of a running call: answered requests, throughput and approximate time left."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from types import TracebackType
from typing import Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from birdie_zmq.client.progress import Progress

_REFRESH_S = 0.5
_FILE_REFRESH_S = 10.0
"""Interval if standard error is not a terminal: a file keeps every state of the bar."""

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class ProgressBar:
    """A progress bar on standard error; log lines are printed above it.

    Args:
        title: The text before the bar.
        total: Number of answers to expect.
        disable: Whether to show nothing.
    """

    def __init__(self, title: str, total: int, *, disable: bool = False) -> None:
        disable = disable or sys.stderr is None  # as in a daemon
        refresh_s = _REFRESH_S if _is_terminal(sys.stderr) else _FILE_REFRESH_S
        # With miniters=0, tqdm draws the bar in the first update after each interval, also where nothing was answered.
        self._bar = tqdm(
            desc=title, total=total, disable=disable, mininterval=refresh_s, miniters=0, bar_format=_FORMAT
        )
        self._progress = Progress()
        self._redirects = contextlib.ExitStack()
        if not disable:
            self._redirects.enter_context(logging_redirect_tqdm())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._redirects.close()
        self._show(replace(self._progress, seconds_left=None))
        self._bar.close()

    def answered(self, count: int) -> None:
        """Count more answers."""
        self._bar.update(count)

    def progress(self, progress: Progress) -> None:
        """Show new progress figures, at most once per refresh interval."""
        self._show(progress)
        self._bar.update(0)

    def _show(self, progress: Progress) -> None:
        self._progress = progress
        self._bar.set_postfix_str(format_progress(progress), refresh=False)


def _is_terminal(stream: object) -> bool:
    """Return whether a stream is a terminal; one that a program has put in place of another may only have ``write``."""
    isatty = getattr(stream, "isatty", None)
    return bool(callable(isatty) and isatty())


def format_progress(progress: Progress) -> str:
    """Return the known figures as a short text."""
    parts = []
    if progress.seconds_left is not None:
        parts.append(f"about {tqdm.format_interval(progress.seconds_left).removeprefix('0')} left")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.padding_share is not None:
        parts.append(f"{progress.padding_share:.0%} padding")
    if progress.distinct_share is not None:
        parts.append(f"{progress.distinct_share:.0%} distinct")
    return ", ".join(parts)
