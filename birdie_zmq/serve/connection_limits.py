"""The HTTP/1.1 protocol of a connection, with limits that uvicorn does not have.

A client that sends no headers, or takes no data, is disconnected. If all connections are taken, a new one replaces the one
that has been idle longest, so that idle connections never keep others out.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from birdie_zmq.serve.settings import ServeSettings


def limited_protocol(settings: ServeSettings) -> type[H11Protocol]:
    """Return the class of connections with these limits."""

    class LimitedProtocol(_LimitedProtocol):
        """A connection with the limits of the server's settings."""

        limits = settings

    return LimitedProtocol


class _LimitedProtocol(H11Protocol):
    limits: ServeSettings

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._idle_since = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, in place of an idle one if there are too many."""
        super().connection_made(transport)
        # A connection that was aborted is in this set until the event loop has closed it.
        is_open = [
            each for each in self.connections if isinstance(each, _LimitedProtocol) and not each.transport.is_closing()
        ]
        if len(is_open) > self.limits.max_connections:
            idle = (each for each in is_open if each is not self and each.is_idle)
            min(idle, key=lambda each: each._idle_since, default=self).transport.abort()
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop(self._header_timer)
        self._stop(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle data; a client may not send the headers of a request byte by byte."""
        super().data_received(data)
        if not self.is_idle:
            self._stop(self._header_timer)
            self._header_timer = None
        elif self._header_timer is None:
            self._start_header_timer()

    def on_response_complete(self) -> None:
        """Handle the end of a response; the connection may be used again."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Handle a client that takes no data: it may do so for a time."""
        super().pause_writing()
        self._stop(self._write_timer)
        self._write_timer = self.loop.call_later(self.limits.stalled_write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Handle a client that takes data again."""
        self._stop(self._write_timer)
        self._write_timer = None
        super().resume_writing()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_s, self.transport.abort)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
