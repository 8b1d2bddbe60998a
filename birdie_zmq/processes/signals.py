"""SIGINT and SIGTERM as something that a poll loop can wait for.

The handler only notes the signal and wakes the loop, which then ends in its own time.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class StopSignals:
    """While entered, SIGINT and SIGTERM make `descriptor` readable instead of ending the process.

    A second signal finds the default action again, so that an impatient person can force the end. Only the main thread
    may enter.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.descriptor, self._wake = os.pipe()
        os.set_blocking(self._wake, False)

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._wake)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
        os.write(self._wake, b"\0")
