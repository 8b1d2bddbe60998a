"""Who hears of answers in a benchmark: subclasses keep them."""

from __future__ import annotations

import sys

from birdie_zmq.types import Level


class Listener:
    """Shows what a user would be told; nobody watches the phases."""

    def notice(self, level: Level, text: str) -> None:
        """Show it."""
        print(f"{level}: {text}", file=sys.stderr)

    def compiling(self, detail: str) -> None:
        """Leave it."""

    def running(self) -> None:
        """Leave it."""

    def step(self) -> None:
        """Leave it."""
