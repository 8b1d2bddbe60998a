"""The server on real sockets, with a model that a test decides on: clients that send too much, too slowly or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from birdie_zmq.errors import ModelLoadError, UsageError, WorkerUnavailable
from birdie_zmq.serve.app import ServeApp
from birdie_zmq.serve.dispatcher import Dispatcher
from birdie_zmq.serve.server import (
    ServerOptions,
    SignalFreeServer,
    check_tls,
    listen,
    serve_until_stopped,
    server_config,
)
from birdie_zmq.serve.settings import ServeSettings
from tests.serve.fakes import FakeClient, FakeConnection, until

SETTINGS = ServeSettings(
    collect_s=1e-4, probe_s=60.0, max_body_bytes=2**20, max_connections=8, header_s=0.5, body_s=0.5, stalled_write_s=0.5
)
PLAIN = ServerOptions(host="127.0.0.1", port=0, api_key=None, tls=None, allows_plain=False, names=("tiny",))


class Running:
    """A server in a thread."""

    def __init__(self, settings: ServeSettings, options: ServerOptions) -> None:
        self.scoring = FakeClient()
        clients = iter([self.scoring, FakeClient()])
        connection: Any = FakeConnection()
        self._dispatcher = Dispatcher(lambda: next(clients), settings, connection)
        self._listener = listen(options)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # as of each connection
        self.port: int = self._listener.getsockname()[1]
        app = ServeApp(connection, self._dispatcher, settings, options.api_key, options.names)
        self._server = SignalFreeServer(server_config(app.starlette(), options, settings))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[self._listener])))
        self._dispatcher.start()
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._dispatcher.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def complete(self) -> int:
        """Ask for a completion on a connection of its own, and return the status."""
        content = {"prompt": "a", "max_tokens": 1}
        return httpx.post(f"http://127.0.0.1:{self.port}/v1/completions", json=content, timeout=20).status_code


@contextlib.contextmanager
def running(settings: ServeSettings = SETTINGS, options: ServerOptions = PLAIN) -> Iterator[Running]:
    server = Running(settings, options)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as made:
        yield made


def head(port: int, *headers: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def received(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection; a reset ends it as well."""
    chunks = []
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(head(server.port, f"Content-Length: {2**30}"))
        assert received(connection).startswith(b"HTTP/1.1 413 ")
    assert server.complete() == 200


def test_an_endless_body_in_chunks_takes_little_memory(server: Running) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    sent = 0
    with server.connect() as connection:
        connection.sendall(head(server.port, "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            while sent < 2**28:
                connection.sendall(chunk)
                sent += 65536
        answer = received(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")  # a reset may overtake it
    assert sent < 2**26
    assert process.memory_info().rss - before < 2**25
    assert server.complete() == 200


def test_a_body_that_does_not_arrive_in_time_is_given_up(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(head(server.port, "Content-Length: 100") + b"{")
        assert server.complete() == 200  # others are served meanwhile
        assert received(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("begun", [b"", b"POST /v1/completions HTTP/1.1\r\nHost: "])
def test_a_connection_without_a_request_is_closed(server: Running, begun: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(begun)
        assert received(connection) == b""


def test_headers_may_not_be_sent_byte_by_byte(server: Running) -> None:
    with server.connect() as connection:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in head(server.port) * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "junk", [b"\0" * 100 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x" * 100_000, b"\x16\x03\x01\r\n\r\n"]
)
def test_what_is_no_http_is_refused(server: Running, junk: bytes) -> None:
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(junk)
        answer = received(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert server.complete() == 200


def test_idle_connections_keep_nobody_out() -> None:
    with running(replace(SETTINGS, header_s=60.0)) as server, contextlib.ExitStack() as connections:
        idle = [connections.enter_context(server.connect()) for _ in range(40)]
        assert [server.complete() for _ in range(4)] == [200] * 4
        # The oldest ones were closed for the newer ones, one for each, also if several arrive at once.
        assert received(idle[0]) == b""
        assert len(_connections(server.port)) <= SETTINGS.max_connections


def test_a_client_that_takes_no_data_is_disconnected() -> None:
    with running() as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(20)
        # An answer of about a megabyte.
        content = {"prompt": ["abc"] * 500, "max_tokens": 1, "logprobs": 20, "echo": True}
        body = json.dumps(content).encode()
        connection.sendall(head(server.port, f"Content-Length: {len(body)}") + body)
        deadline = time.monotonic() + 20
        while not server.scoring.calls and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _connections(server.port)
        while len(_connections(server.port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _connections(server.port)


def _connections(port: int) -> list[Any]:
    """Return the open connections that this process has accepted at a port."""
    return [
        each
        for each in psutil.Process().net_connections("tcp")
        if each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
    ]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with the command openssl")
def test_https(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    check_tls(certificate, key)
    with pytest.raises(UsageError, match="cannot use the certificate"):
        check_tls(certificate, certificate)
    with running(options=replace(PLAIN, tls=(certificate, key))) as server:
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=trusted) as client:
            assert client.get(f"https://localhost:{server.port}/health").json() == {"status": "ok"}
        with server.connect() as plain:  # not HTTPS
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" not in received(plain)


def test_a_port_in_use_is_named(server: Running) -> None:
    with pytest.raises(UsageError, match=f"port {server.port}: Address already in use"):
        listen(replace(PLAIN, port=server.port))
    with pytest.raises(UsageError, match="--port 70000"):
        listen(replace(PLAIN, port=70_000))


def test_the_address_that_a_name_stands_for_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **options: Any) -> Any:
        del host, options
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UsageError, match="needs an API key"):
        listen(replace(PLAIN, host="localhost"))


def test_requests_that_run_are_answered_when_the_server_stops() -> None:
    gate = threading.Event()
    statuses: list[int] = []
    with running() as server:
        server.scoring.scripts = [until(gate)]
        call = threading.Thread(target=lambda: statuses.append(server.complete()))
        call.start()
        while not server.scoring.calls:
            call.join(0.001)
        server._server.should_exit = True
        gate.set()
        call.join()
    assert statuses == [200]


@pytest.mark.parametrize("is_embedded", [True, False])
def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(is_embedded: bool) -> None:
    connection: Any = FakeConnection()
    connection.is_embedded, connection.error = is_embedded, ModelLoadError("no such checkpoint")
    dispatcher = Dispatcher(FakeClient, SETTINGS, connection)
    app = ServeApp(connection, dispatcher, SETTINGS, None, ("tiny",))
    server = SignalFreeServer(server_config(app.starlette(), PLAIN, SETTINGS))
    with listen(PLAIN) as listener:
        failure = asyncio.run(serve_until_stopped(server, listener, connection, dispatcher))
    assert failure is connection.error


def test_a_stop_signal_ends_the_server_in_order() -> None:
    connection: Any = FakeConnection()
    connection.is_embedded, connection.error = False, WorkerUnavailable("the broker has no worker yet")
    connection.probe = lambda: os.kill(os.getpid(), signal.SIGTERM)
    dispatcher = Dispatcher(FakeClient, SETTINGS, connection)
    app = ServeApp(connection, dispatcher, SETTINGS, None, ("tiny",))
    server = SignalFreeServer(server_config(app.starlette(), PLAIN, SETTINGS))
    with listen(PLAIN) as listener:
        assert asyncio.run(serve_until_stopped(server, listener, connection, dispatcher)) is None
