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

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.]+(?:%[A-Za-z0-9._-]+)?\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5}|\*)")


@dataclass(frozen=True)
class TcpEndpoint:
    """A TCP endpoint, ``tcp://host:port``; port 0 means ``*``, any free port.

    The host is a name, an IPv4 address, or an IPv6 address in brackets, which may have a scope: ``[fe80::1%eth0]``.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port or '*'}"

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return self.host.startswith("[")

    @property
    def is_name(self) -> bool:
        """Whether the host is a name, which may stand for several addresses."""
        try:
            ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            return True
        return False

    @property
    def is_loopback(self) -> bool:
        """Whether the host is an address at which only this machine can connect; False for every name."""
        return not self.is_name and ipaddress.ip_address(self.host.strip("[]")).is_loopback


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
    endpoint = TcpEndpoint(match["host"], port)
    if endpoint.is_ipv6 and (endpoint.is_name or ":" not in endpoint.host):
        raise UsageError(f"{endpoint.host} in {text!r} is not an IPv6 address")
    return endpoint


def check_bindable(endpoint: Endpoint, has_keys: bool = False, name: str | None = None) -> None:
    """Reject an address that other machines could connect to, unless the broker has keys.

    Args:
        endpoint: The address; a name is rejected without keys, since it must be looked up first.
        has_keys: Whether the broker has keys.
        name: The host name that the address was found for, for the message.

    Raises:
        UsageError: The endpoint is a TCP address outside the loopback interface, and there are no keys.
    """
    if isinstance(endpoint, TcpEndpoint) and not endpoint.is_loopback and not has_keys:
        found = "" if name is None else f", an address of {name},"
        raise UsageError(
            f"{endpoint}{found} could be reached from other machines, and anyone who can connect to a broker without keys can "
            "use its models. Make a key for each client and worker (birdie-zmq keys new client NAME, birdie-zmq keys new "
            "worker NAME) and start the broker with --keys; or bind 127.0.0.1, and connect other machines through an SSH "
            "tunnel (ssh -L 5555:127.0.0.1:5555 this-machine)"
        )
