"""The HTTP server of the status page: read-only, on loopback, in a thread that never touches the broker's state.

The broker's loop calls `StatusServer.update_status`, which keeps an immutable snapshot; requests are answered from the
last one. Every process that can reach the port can read the page. A foreign web page that is open in a browser on this
machine must not reach it, so the Host header must be a loopback name and no response allows other origins.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import ipaddress
import logging
import os
import re
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any, Self

import msgspec

from birdie_zmq._version import __version__
from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.status.metrics import exposition
from birdie_zmq.broker.status.snapshot import About, Status, snapshot
from birdie_zmq.errors import UsageError

logger = logging.getLogger("birdie_zmq.broker")

_HOST = "127.0.0.1"
_MAX_CONCURRENT_REQUESTS = 16
"""Requests that are answered concurrently; further connections are closed."""
_SOCKET_TIMEOUT_S = 5.0
"""Seconds that a connection may take to send its request or to read the response."""
_POLL_S = 0.1
"""Seconds between checks for a shutdown, and so the longest time that closing takes."""
_METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class StatusServer:
    """A server of the page, ``/status.json`` and ``/metrics``, as a context manager.

    Args:
        port: The port on 127.0.0.1; 0 takes a free one.
        endpoint: The endpoint of the broker, for display.

    Raises:
        UsageError: The port is in use or out of range.
    """

    def __init__(self, port: int, endpoint: str) -> None:
        self._about = About(__version__, endpoint, os.getpid(), time.monotonic())
        self._status: Status | None = None
        self._page = _Page.read()
        if not 0 <= port <= 65535:
            raise UsageError(f"--status-port {port} is not a port; choose one from 1 to 65535, or 0 for a free one")
        try:
            self._server = _Server((_HOST, port), self._handler())
        except OSError as error:
            raise UsageError(
                f"cannot serve the status page at {_HOST}:{port}: {error.strerror}; choose another port with --status-port, "
                "or 0 for a free one"
            ) from error
        self.address = f"http://{_HOST}:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="status page", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def update_status(self, core: BrokerCore, now: float) -> None:
        """Take a snapshot of the core; only the thread of the broker's loop may call this."""
        self._status = snapshot(core, self._about, now)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(_Handler):
            """Handler of requests that answers from the last snapshot of the server."""

            page = self._page

            def status(self) -> Status | None:
                status = server._status
                return None if status is None else dataclasses.replace(status, age_s=time.monotonic() - status.at)

        return Handler


@dataclasses.dataclass(frozen=True)
class _Page:
    html: bytes
    policy: str

    @classmethod
    def read(cls) -> _Page:
        """Read the page, and make a content security policy that allows its own script and style only."""
        html = files("birdie_zmq.broker.status").joinpath("page.html").read_text(encoding="utf-8")
        sources = {}
        for name in ("script", "style"):
            (inline,) = re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            sources[name] = f"{name}-src 'sha256-{digest}'"
        policy = [
            "default-src 'none'",
            sources["script"],
            sources["style"],
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
        return cls(html.encode(), "; ".join(policy))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.BoundedSemaphore(_MAX_CONCURRENT_REQUESTS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        # HTTPServer.server_bind resolves the host name of the address, which can take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        logger.debug("a request for the status page failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _SOCKET_TIMEOUT_S
    server_version = "birdie-zmq"
    sys_version = ""
    page: _Page

    def status(self) -> Status | None:
        raise NotImplementedError

    def do_GET(self) -> None:
        if not _is_loopback(self.headers.get_all("Host") or []):
            self._text(HTTPStatus.FORBIDDEN, "the Host header must be a loopback address or localhost")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.page.html)
        elif path not in ("/status.json", "/metrics"):
            self._text(HTTPStatus.NOT_FOUND, "not found; available: /, /status.json, /metrics")
        elif (status := self.status()) is None:
            self._text(HTTPStatus.SERVICE_UNAVAILABLE, "the broker is starting and has no status yet")
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, _METRICS_TYPE, exposition(status))
        else:
            self._answer(HTTPStatus.OK, "application/json", msgspec.json.encode(status))

    def _refuse(self) -> None:
        self._text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is supported", Allow="GET")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a malformed request with a fixed text, because the default text repeats parts of the request."""
        del message, explain
        self._text(HTTPStatus(code), "malformed or unsupported request")

    def _text(self, status: HTTPStatus, text: str, **headers: str) -> None:
        self._answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), **headers)

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": self.page.policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name in the base class
        """Log nothing, because an open page polls every second and would fill the log."""


for _method in ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
    setattr(_Handler, f"do_{_method}", _Handler._refuse)


def _is_loopback(hosts: list[str]) -> bool:
    """Return whether a request has exactly one Host header, with a loopback name.

    Another name may resolve to this machine as well, and may belong to anybody (DNS rebinding).
    """
    if len(hosts) != 1:
        return False
    name = re.sub(r":\d+\Z", "", hosts[0])
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
