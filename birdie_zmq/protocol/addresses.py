"""The addresses of host names: lookup by the operating system's resolver, and the addresses that a broker may bind."""

from __future__ import annotations

import errno
import socket
import threading
from dataclasses import replace

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import Endpoint, TcpEndpoint, check_bindable


def look_up(endpoint: TcpEndpoint) -> list[TcpEndpoint]:
    """Return the endpoint with each address of its host name, in the order of the operating system. May block for long.

    Raises:
        OSError: The name does not resolve; ``strerror`` says why.
    """
    try:
        found = socket.getaddrinfo(endpoint.host.strip("[]"), None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, "it is not a valid host name") from error
    hosts = [f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0]) for family, *_, address in found]
    return [replace(endpoint, host=host) for host in dict.fromkeys(hosts)]


class Lookup:
    """A lookup in a thread of its own, since the resolver may block for longer than a peer may be silent.

    Args:
        endpoint: The endpoint with a host name.

    Attributes:
        is_done: Whether there is a result.
    """

    def __init__(self, endpoint: TcpEndpoint) -> None:
        self._endpoint = endpoint
        self.is_done = False
        self._result: list[TcpEndpoint] | OSError = []
        self._done, thread_end = socket.socketpair()
        # A daemon thread, so that a resolver without an answer does not delay the exit of the process.
        threading.Thread(target=self._run, args=(thread_end,), daemon=True).start()

    def _run(self, thread_end: socket.socket) -> None:
        with thread_end:  # Closing it makes the other end readable.
            try:
                self._result = look_up(self._endpoint)
            except OSError as error:
                self._result = error
            finally:
                self.is_done = True

    def fileno(self) -> int:
        """Return the descriptor that is readable once there is a result."""
        return self._done.fileno()

    def result(self) -> list[TcpEndpoint] | str:
        """Return the addresses, or why the name does not resolve, once `is_done`."""
        self.close()
        result = self._result
        return (result.strerror or str(result)) if isinstance(result, OSError) else result

    def close(self) -> None:
        """Give up the lookup; a second call does nothing."""
        self._done.close()


def bindable_addresses(endpoint: Endpoint, has_keys: bool = False) -> list[Endpoint]:
    """Return the endpoints that a broker binds: all addresses of a host name, so that clients find it by that name.

    Args:
        endpoint: An address, a host name, the name of a network interface, or a path.
        has_keys: Whether the broker has keys. Without keys, all addresses must be loopback addresses.

    Raises:
        UsageError: The name does not resolve, or other machines could connect and there are no keys.
    """
    is_interface = isinstance(endpoint, TcpEndpoint) and endpoint.host in (name for _, name in socket.if_nameindex())
    if not isinstance(endpoint, TcpEndpoint) or not endpoint.is_name or is_interface:
        check_bindable(endpoint, has_keys)
        return [endpoint]
    try:
        addresses = look_up(endpoint)
    except OSError as error:
        raise UsageError(
            f"cannot bind {endpoint}: the name {endpoint.host} does not resolve ({error.strerror or error}); give an address of "
            "this machine"
        ) from error
    for address in addresses:
        check_bindable(address, has_keys, name=endpoint.host)
    # IPv4 first: the first one is what people copy from the log.
    return [*sorted(addresses, key=lambda address: address.is_ipv6)]
