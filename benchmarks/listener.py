"""The base class of listeners that receive answers in a benchmark; subclasses store the answers."""

from __future__ import annotations

import sys

from birdie_zmq.types import Level


class Listener:
    """A listener that prints notices to standard error and ignores phases."""

    def notice(self, level: Level, text: str) -> None:
        """Print a notice to standard error."""
        print(f"{level}: {text}", file=sys.stderr)

    def compiling(self, detail: str) -> None:
        """Ignore that an executable is compiled."""

    def running(self) -> None:
        """Ignore that the model runs."""

    def step(self) -> None:
        """Ignore the end of a step."""
