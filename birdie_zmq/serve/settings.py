"""The settings of the HTTP server: limits of what its clients may take, in size, number and time."""

from __future__ import annotations

from dataclasses import dataclass

from birdie_zmq.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The limits of the server.

    Attributes:
        max_requests: Requests that are answered or wait at once; further ones are refused with 429.
        max_body_bytes: Bytes of the body of one request.
        max_total_body_bytes: Bytes of the bodies of all requests at once; further ones are refused with 429.
        max_prompts: Prompts of a request, times its ``n``.
        max_connections: Open connections; a further one replaces the one that has been idle longest.
        header_s: How long a client may take to send the headers of a request.
        body_s: How long it may take to send the body.
        keep_alive_s: How long a connection is kept between requests.
        stalled_write_s: How long a client may take no data while a response waits to be sent.
        request_s: How long the answer to a request may take.
        collect_s: How long no request must have arrived until those that wait are computed together.
        most_collect_s: How long they wait at most, while further ones arrive.
        turn_s: How long requests wait at most until a running generation is interrupted for them.
        probe_s: How often an idle server asks its worker for a sign of life.
        batch_items: Prompts that are sent to a worker in one message.
        call_items: Prompts that are sent until the others have a turn.
    """

    max_requests: int = 256
    max_body_bytes: int = 8 * 2**20
    max_total_body_bytes: int = 64 * 2**20
    max_prompts: int = 2048
    max_connections: int = 1024
    header_s: float = 10.0
    body_s: float = 30.0
    keep_alive_s: float = 30.0
    stalled_write_s: float = 60.0
    request_s: float = 3600.0
    collect_s: float = 0.02
    most_collect_s: float = 0.2
    turn_s: float = 2.0
    probe_s: float = 5.0
    batch_items: int = 256
    call_items: int = 512

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)!r}")
