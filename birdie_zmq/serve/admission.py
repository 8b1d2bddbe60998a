"""Admission: how many requests, and how many bytes of them, the server holds at once."""

from __future__ import annotations

from birdie_zmq.serve.api_error import ApiError
from birdie_zmq.serve.settings import ServeSettings


class Ticket:
    """The place of an admitted request, until it is released.

    Args:
        admission: What has admitted it.
        size: The bytes that count for it.
    """

    def __init__(self, admission: Admission, size: int) -> None:
        self._admission = admission
        self._size = size
        self._is_held = True

    def release(self) -> None:
        """Release the place; a second call does nothing."""
        if self._is_held:
            self._is_held = False
            self._admission.left(self._size)


class Admission:
    """Counts the requests that are read, wait or are answered.

    Args:
        settings: The limits.

    Attributes:
        requests: The number of admitted requests.
        refused: The number of refused requests so far.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.requests = 0
        self.refused = 0
        self._bytes = 0

    def admit(self, content_length: str | None) -> Ticket:
        """Count a request, until its ticket is released.

        Args:
            content_length: The header of this name; a request without one may have the largest body.

        Raises:
            ApiError: The server is full.
        """
        settings = self._settings
        has_length = content_length is not None and content_length.isdecimal()
        size = min(int(content_length or 0), settings.max_body_bytes) if has_length else settings.max_body_bytes
        if self.requests >= settings.max_requests:
            self.refused += 1
            raise ApiError(
                429, f"{self.requests} requests are being answered; try again later", code="full", closes=True
            )
        if self.requests and self._bytes + size > settings.max_total_body_bytes:
            self.refused += 1
            raise ApiError(
                429, f"requests of {self._bytes:,} bytes are being answered; try again later", code="full", closes=True
            )
        self.requests += 1
        self._bytes += size
        return Ticket(self, size)

    def left(self, size: int) -> None:
        """Count a request no more, which had some bytes."""
        self.requests -= 1
        self._bytes -= size
