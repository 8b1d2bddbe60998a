"""The names of signals, and SIGINT and SIGTERM as a file descriptor that a poll loop can wait for.

The handler only records the signal and wakes the loop, which then shuts down cleanly.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Self


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGKILL``, or ``signal 63`` if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class StopSignals:
    """A context manager in which SIGINT and SIGTERM make `descriptor` readable instead of ending the process.

    A second signal has the default action again, so that a person can force the process to end. Only the main thread may
    enter.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.descriptor, self._wake_descriptor = os.pipe()
        os.set_blocking(self._wake_descriptor, False)

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._wake_descriptor)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
        os.write(self._wake_descriptor, b"\0")
