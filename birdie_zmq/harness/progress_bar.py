"""The bar of a call that goes on: how much is answered, how fast, and how much longer."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import replace
from types import TracebackType
from typing import Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from birdie_zmq.client.progress import Progress

_BETWEEN_S = 0.5
_BETWEEN_LINES_S = 10.0
"""Where the bar goes into a file, which keeps each state of it."""

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class ProgressBar:
    """A bar on standard error; what is logged meanwhile stands above it.

    Args:
        title: What is done.
        total: How many answers there will be.
        disable: Show nothing.
    """

    def __init__(self, title: str, total: int, *, disable: bool = False) -> None:
        self._between_s = _BETWEEN_S if sys.stderr.isatty() else _BETWEEN_LINES_S
        self._bar = tqdm(desc=title, total=total, disable=disable, mininterval=self._between_s, bar_format=_FORMAT)
        self._drawn_at = time.monotonic()
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

    def answered(self) -> None:
        """One more answer."""
        self._bar.update(1)

    def progress(self, progress: Progress) -> None:
        """How far it has come."""
        self._show(progress)
        now = time.monotonic()
        if now - self._drawn_at >= self._between_s:
            self._drawn_at = now
            self._bar.refresh()

    def _show(self, progress: Progress) -> None:
        self._progress = progress
        self._bar.set_postfix_str(as_text(progress), refresh=False)


def as_text(progress: Progress) -> str:
    """What is known, in few words."""
    parts = []
    if progress.seconds_left is not None:
        parts.append(f"{tqdm.format_interval(progress.seconds_left)} left")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.padding_share is not None:
        parts.append(f"{progress.padding_share:.0%} padding")
    if progress.distinct_share is not None:
        parts.append(f"{progress.distinct_share:.0%} distinct")
    return ", ".join(parts)
