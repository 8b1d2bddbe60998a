"""The process of the server: its socket, uvicorn, the model's connection, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from birdie_zmq.errors import BirdieError, UnavailableError, UsageError
from birdie_zmq.harness.model_args import RunArguments
from birdie_zmq.serve.access import ApiKey, check_address
from birdie_zmq.serve.app import ServeApp
from birdie_zmq.serve.connection_limits import limited_protocol
from birdie_zmq.serve.dispatcher import Dispatcher
from birdie_zmq.serve.model_connection import ModelConnection
from birdie_zmq.serve.settings import ServeSettings

_GRACE_S = 10
"""Seconds that running requests have to end when the server is stopped."""
_RESERVED_FILES = 96
"""Open files beside those of connections, and of connections that are accepted before idle ones are closed."""
_ACCEPTED_AT_ONCE = 16
"""asyncio accepts as many connections as its backlog before a protocol can close an idle one, so a burst of them would
take all open files."""
_BACKLOG = 512
"""Connections that wait in the kernel to be accepted."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What the server listens on, and for whom.

    Attributes:
        host: The address.
        port: The port; 0 takes a free one.
        api_key: The key that requests must have; None on loopback.
        tls: The files of the certificate chain and of its private key; None for plain HTTP.
        allows_plain: Whether other addresses than loopback may have no TLS.
        names: The names that requests may call the model by.
    """

    host: str
    port: int
    api_key: ApiKey | None
    tls: tuple[Path, Path] | None
    allows_plain: bool
    names: tuple[str, ...]


class SignalFreeServer(uvicorn.Server):
    """A server whose signals are handled here, so that the embedded processes are ended in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen; asyncio sets the kernel's backlog to that of the configuration, which is smaller."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)


def serve(
    arguments: RunArguments, options: ServerOptions, settings: ServeSettings, announce: Callable[[str], None]
) -> None:
    """Serve a model until a stop signal.

    Args:
        arguments: The model, and the broker or the options of the embedded worker.
        options: What the server listens on.
        settings: The limits.
        announce: Is given the address once the server listens.

    Raises:
        UsageError: The address cannot be used, or a file of TLS cannot be read.
        BirdieError: The model cannot be loaded.
    """
    if options.tls is not None:
        check_tls(*options.tls)
    settings = replace(settings, max_connections=_raise_file_limit(settings.max_connections))
    with listen(options) as listener, contextlib.ExitStack() as resources:
        connection = ModelConnection(arguments)
        resources.callback(connection.close)
        dispatcher = Dispatcher(connection.client, settings, connection)
        app = ServeApp(connection, dispatcher, settings, options.api_key, options.names)
        server = SignalFreeServer(server_config(app.starlette(), options, settings))
        scheme = "http" if options.tls is None else "https"
        host, port = listener.getsockname()[:2]
        announce(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        failure = asyncio.run(serve_until_stopped(server, listener, connection, dispatcher))
        if failure is not None:
            raise failure


async def serve_until_stopped(
    server: SignalFreeServer, listener: socket.socket, connection: ModelConnection, dispatcher: Dispatcher
) -> BirdieError | None:
    """Serve until a stop signal; return why the model could not be loaded, if that is why the server ended."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    failure: list[BirdieError] = []

    def load() -> None:
        connection.probe()
        error = connection.error
        if error is not None and (connection.is_embedded or not isinstance(error, UnavailableError)):
            failure.append(error)
            server.should_exit = True
            return
        dispatcher.start()

    # Requests are refused with 503 meanwhile.
    threading.Thread(target=load, name="loading", daemon=True).start()
    try:
        await server.serve(sockets=[listener])
    finally:
        await asyncio.to_thread(dispatcher.close)
    return failure[0] if failure else None


def server_config(app: Starlette, options: ServerOptions, settings: ServeSettings) -> uvicorn.Config:
    """Return uvicorn's settings: nothing that a client sends is logged, or believed beyond its request."""
    certificate, key = options.tls or (None, None)
    return uvicorn.Config(
        app,
        http=limited_protocol(settings),
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_ACCEPTED_AT_ONCE,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )


def check_tls(certificate: Path, key: Path) -> None:
    """Check the files of TLS before anything is started.

    Raises:
        UsageError: They cannot be read, or do not belong together.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # also ssl.SSLError
        raise UsageError(f"cannot use the certificate {certificate} with the key {key}: {error}") from error


def listen(options: ServerOptions) -> socket.socket:
    """Return a socket that listens on an address.

    The address that is checked is the one that the host's name stands for, and that is listened on.

    Raises:
        UsageError: The address does not exist, is in use, or needs a key or TLS.
    """
    host, port = options.host, options.port
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port} is not a port; choose one from 1 to 65535, or 0 for a free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        check_address(
            str(address[0]),
            has_key=options.api_key is not None,
            has_tls=options.tls is not None,
            allows_plain=options.allows_plain,
        )
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        text = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {host} port {port}: {text}; choose others with --host and --port"
        ) from error


def _raise_file_limit(wanted: int) -> int:
    """Raise the limit of open files as far as allowed, and return how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _RESERVED_FILES))
