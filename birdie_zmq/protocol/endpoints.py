"""Endpoints: which are understood, and which the broker may bind."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.errors import UsageError

DEFAULT_PORT = 5555
DEFAULT_ENDPOINT = f"tcp://127.0.0.1:{DEFAULT_PORT}"
MAX_IPC_PATH_BYTES = 107
"""The size of a Unix socket's address, less its terminating zero."""

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5}|\*)")


@dataclass(frozen=True)
class TcpEndpoint:
    """``tcp://host:port``; port 0 stands for ``*``, any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port or '*'}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the endpoint."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class IpcEndpoint:
    """``ipc://path``, a Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"ipc://{self.path}"


Endpoint = TcpEndpoint | IpcEndpoint


def parse_endpoint(text: str) -> Endpoint:
    """Read ``tcp://host:port`` or ``ipc:///path``.

    Raises:
        UsageError: The text is neither, the port is out of range, or the path is longer than a socket's may be.
    """
    if text.startswith("ipc://"):
        path = Path(text.removeprefix("ipc://"))
        if not path.is_absolute():
            raise UsageError(f"the endpoint {text!r} needs an absolute path, such as ipc:///run/birdie/broker")
        if len(bytes(path)) > MAX_IPC_PATH_BYTES:
            raise UsageError(
                f"the path of {text!r} is over {MAX_IPC_PATH_BYTES} bytes, the most that a socket may have"
            )
        return IpcEndpoint(path)
    match = _TCP.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no endpoint; write it as tcp://host:port, such as {DEFAULT_ENDPOINT}")
    port = 0 if match["port"] == "*" else int(match["port"])
    if port > 65535:
        raise UsageError(f"the port of {text!r} is over 65535")
    return TcpEndpoint(match["host"], port)


def check_bindable(endpoint: Endpoint, has_keys: bool = False) -> None:
    """Refuse an address that other machines could reach, unless keys say who they are.

    Raises:
        UsageError: The endpoint is a TCP address off the loopback interface, and there are no keys.
    """
    if isinstance(endpoint, TcpEndpoint) and not endpoint.is_loopback and not has_keys:
        raise UsageError(
            f"{endpoint} could be reached from other machines, and whoever reaches a broker without keys can use its "
            "models. Make a key for each client and worker (birdie-zmq keys new client NAME, birdie-zmq keys new worker "
            "NAME) and start the broker with --keys; or bind 127.0.0.1, and let other machines in through an SSH tunnel "
            "(ssh -L 5555:127.0.0.1:5555 this-machine)"
        )
