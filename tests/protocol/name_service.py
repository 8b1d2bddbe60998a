"""A name service of the test: the addresses that a host name has, and how long a lookup takes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

_LOOK_UP = socket.getaddrinfo


class NameService:
    """Answers lookups of the names that a test gives; other names do not resolve.

    Attributes:
        addresses: The addresses of each name, in order.
        resumed: Cleared to let lookups block.
        lookups: Number of lookups.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.resumed = threading.Event()
        self.resumed.set()
        self.lookups = 0
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, *arguments: Any, **options: Any) -> Any:
        self.lookups += 1
        self.resumed.wait()
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in self.addresses[host] for found in _LOOK_UP(address, *arguments, **options)]


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1") -> Iterator[int]:
    """Provide a port that lets no connection through: its queue is full, so the kernel answers no request."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]
