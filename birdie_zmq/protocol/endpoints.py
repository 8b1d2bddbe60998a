"""Endpoints: parsing, and the check whether the broker may bind one."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.errors import UsageError

DEFAULT_PORT = 5555
DEFAULT_ENDPOINT = f"tcp://127.0.0.1:{DEFAULT_PORT}"
MAX_IPC_PATH_BYTES = 107
"""The size of a Unix socket address without its terminating zero."""

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5}|\*)")


@dataclass(frozen=True)
class TcpEndpoint:
    """A TCP endpoint, ``tcp://host:port``; port 0 means ``*``, any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port or '*'}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to the endpoint."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class IpcEndpoint:
    """A Unix socket endpoint, ``ipc://path``."""

    path: Path

    def __str__(self) -> str:
        return f"ipc://{self.path}"


Endpoint = TcpEndpoint | IpcEndpoint


def parse_endpoint(text: str) -> Endpoint:
    """Parse ``tcp://host:port`` or ``ipc:///path``.

    Raises:
        UsageError: The text is neither, the port is out of range, or the path is too long for a Unix socket.
    """
    if text.startswith("ipc://"):
        path = Path(text.removeprefix("ipc://"))
        if not path.is_absolute():
            raise UsageError(f"the endpoint {text!r} needs an absolute path, such as ipc:///run/birdie/broker")
        if len(bytes(path)) > MAX_IPC_PATH_BYTES:
            raise UsageError(
                f"the path of {text!r} is longer than {MAX_IPC_PATH_BYTES} bytes, the limit of a Unix socket"
            )
        return IpcEndpoint(path)
    match = _TCP.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not an endpoint; write it as tcp://host:port, such as {DEFAULT_ENDPOINT}")
    port = 0 if match["port"] == "*" else int(match["port"])
    if port > 65535:
        raise UsageError(f"the port of {text!r} is over 65535")
    return TcpEndpoint(match["host"], port)


def check_bindable(endpoint: Endpoint, has_keys: bool = False) -> None:
    """Reject an address that other machines could connect to, unless the broker has keys.

    Raises:
        UsageError: The endpoint is a TCP address outside the loopback interface, and there are no keys.
    """
    if isinstance(endpoint, TcpEndpoint) and not endpoint.is_loopback and not has_keys:
        raise UsageError(
            f"{endpoint} could be reached from other machines, and anyone who can connect to a broker without keys can use "
            "its models. Make a key for each client and worker (birdie-zmq keys new client NAME, birdie-zmq keys new worker "
            "NAME) and start the broker with --keys; or bind 127.0.0.1, and connect other machines through an SSH tunnel "
            "(ssh -L 5555:127.0.0.1:5555 this-machine)"
        )
