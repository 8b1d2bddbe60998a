"""How the processes of a group meet, and what a person hears while they wait.

JAX says nothing while it waits for processes, and kills its own when they do not come. So a thread beside it says after a
while who is missing, and what to do when the time is over.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from birdie_zmq.engine.distributed.process_group import RankInfo
from birdie_zmq.errors import GroupIncomplete

FIRST_WORD_S = 10.0
"""Processes that start together meet before anybody wonders."""

_NEXT_WORD_S = 60.0
_ESTABLISHED = "01"
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))


class Rendezvous:
    """While entered, tells of the wait for others, and when it is over.

    Args:
        place: The place of this process.
        coordinator: HOST:PORT at which they meet.
        tell: Told who is missing.
        give_up: Called in another thread when the time is over; must end the process.
        first_word_s: After how long something is said.
    """

    def __init__(
        self,
        place: RankInfo,
        coordinator: str,
        tell: Callable[[str], None],
        give_up: Callable[[GroupIncomplete], None],
        first_word_s: float = FIRST_WORD_S,
    ) -> None:
        self._place = place
        self._coordinator = coordinator
        self._tell = tell
        self._give_up = give_up
        self._first_word_s = first_word_s
        self._over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        until = time.monotonic() + self._place.timeout_s
        pause_s = min(self._first_word_s, self._place.timeout_s / 3)
        while not self._over.wait(min(pause_s, max(0.0, until - time.monotonic()))):
            left_s = until - time.monotonic()
            if left_s <= 0:
                self._give_up(GroupIncomplete(incomplete(self._place, self._coordinator, self._there())))
                return
            self._tell(waiting(self._place, self._coordinator, self._there(), left_s))
            pause_s = _NEXT_WORD_S

    def _there(self) -> int | None:
        return connected(int(self._coordinator.rpartition(":")[2]))


def waiting(place: RankInfo, coordinator: str, there: int | None, left_s: float) -> str:
    """What is said while processes are missing."""
    return (
        f"waiting for all {place.num_processes} processes of the group at {coordinator}{_count(there)}; {left_s:.0f} s more, "
        "then the run gets an error"
    )


def incomplete(place: RankInfo, coordinator: str, there: int | None) -> str:
    """What is said when they did not come."""
    return (
        f"not all {place.num_processes} processes of the group have come to {coordinator} within {place.timeout_s:.0f} s"
        f"{_count(there)}; start a worker on each host, with the same --coordinator and --num-processes, each with its own "
        "--process-id, and see that they reach that port (--initialization-timeout waits longer)"
    )


def _count(there: int | None) -> str:
    return "" if there is None else f" ({there} {'is' if there == 1 else 'are'} there)"


def connected(port: int) -> int | None:
    """How many processes are connected to a port of this host, itself among them; None where the system does not say."""
    if sys.platform != "linux":
        return None
    try:
        lines = [line for table in _TABLES if table.exists() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return None
    return count_connections(lines, port)


def count_connections(lines: Iterable[str], port: int) -> int:
    """The connections that were made to a port, of a table such as /proc/net/tcp without its heading."""
    fields = [line.split() for line in lines]
    return sum(
        len(field) > 3 and field[3] == _ESTABLISHED and int(field[1].rpartition(":")[2], 16) == port for field in fields
    )
