"""The rendezvous of the ranks of a process group: reports while they wait for each other, and the error after the timeout.

jax.distributed logs nothing while it waits for processes, and kills its own process when they do not connect in time. So a
thread beside it reports after a while how many are missing, and what to do when the time is over.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from birdie_zmq.errors import ProcessGroupIncomplete
from birdie_zmq.types import RankInfo

FIRST_REPORT_S = 10.0
"""Seconds within which ranks that start together connect, so an earlier report would be noise."""

_REPORT_INTERVAL_S = 60.0
_ESTABLISHED = "01"
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))


class Rendezvous:
    """A context manager around joining a process group, which reports the wait and ends it after the timeout.

    Args:
        rank: The rank of this process.
        coordinator: HOST:PORT to which all ranks connect.
        report: Called with lines that say how many ranks are connected.
        fail: Called in another thread after the timeout; must end the process.
        first_report_s: The delay before the first report, in seconds.
    """

    def __init__(
        self,
        rank: RankInfo,
        coordinator: str,
        report: Callable[[str], None],
        fail: Callable[[ProcessGroupIncomplete], None],
        first_report_s: float = FIRST_REPORT_S,
    ) -> None:
        self._rank = rank
        self._coordinator = coordinator
        self._report = report
        self._fail = fail
        self._first_report_s = first_report_s
        self._done = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        deadline = time.monotonic() + self._rank.timeout_s
        interval_s = min(self._first_report_s, self._rank.timeout_s / 3)
        while not self._done.wait(min(interval_s, max(0.0, deadline - time.monotonic()))):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._fail(ProcessGroupIncomplete(timeout_text(self._rank, self._coordinator, self._connected())))
                return
            self._report(waiting_text(self._rank, self._coordinator, self._connected(), left_s))
            interval_s = _REPORT_INTERVAL_S

    def _connected(self) -> int | None:
        return connected_processes(int(self._coordinator.rpartition(":")[2]))


def waiting_text(rank: RankInfo, coordinator: str, connected: int | None, left_s: float) -> str:
    """Return the report while ranks are missing."""
    return (
        f"waiting for all {rank.num_processes} processes of the group at {coordinator}{_count(connected)}; the run fails in "
        f"{left_s:.0f} s"
    )


def timeout_text(rank: RankInfo, coordinator: str, connected: int | None) -> str:
    """Return the error message after the timeout."""
    return (
        f"not all {rank.num_processes} processes of the group connected to {coordinator} within {rank.timeout_s:.0f} s"
        f"{_count(connected)}; start a worker on each host, with the same --coordinator and --num-processes and its own "
        "--process-id, and check that they can reach that port (--initialization-timeout waits longer)"
    )


def _count(connected: int | None) -> str:
    return "" if connected is None else f" ({connected} connected)"


def connected_processes(port: int) -> int | None:
    """Return the number of processes connected to a port of this host, itself included; None where the system lists no connections."""
    if sys.platform != "linux":
        return None
    try:
        lines = [line for table in _TABLES if table.exists() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return None
    return count_connections(lines, port)


def count_connections(lines: Iterable[str], port: int) -> int:
    """Count the connections that were made to a port.

    Args:
        lines: The lines of a table such as /proc/net/tcp, without its heading.
        port: The port.
    """
    fields = [line.split() for line in lines]
    return sum(
        len(field) > 3 and field[3] == _ESTABLISHED and int(field[1].rpartition(":")[2], 16) == port for field in fields
    )
