"""Who may use the server: it is closed unless a request comes from this machine, or has the API key.

Without a key the server listens on loopback only. A web page in a browser on this machine must not reach it either, so the
Host header must then be a loopback name, and a POST must have the content type application/json, which no page can send to
another origin without asking first.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.errors import UsageError
from birdie_zmq.serve.api_error import ApiError

KEY_VARIABLE = "BIRDIE_ZMQ_API_KEY"
"""The environment variable that may hold the API key."""

_MAX_KEY_BYTES = 4096
_MIN_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class ApiKey:
    """The API key; only a hash of it is kept, so that no traceback or dump of this record shows it."""

    digest: bytes

    @classmethod
    def of(cls, key: str) -> ApiKey:
        """Return the record of a key."""
        return cls(hashlib.sha256(key.encode()).digest())

    def matches(self, given: str) -> bool:
        """Return whether a key is this one, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.digest, hashlib.sha256(given.encode(errors="surrogateescape")).digest())


def read_api_key(path: Path | None, environment: Mapping[str, str]) -> ApiKey | None:
    """Return the API key from a file or the environment; None if neither is given.

    Raises:
        UsageError: Both are given, the file cannot be read or other users can access it, or the key is too short.
    """
    from_environment = environment.get(KEY_VARIABLE)
    if path is None:
        return None if not from_environment else _checked(from_environment, f"the environment variable {KEY_VARIABLE}")
    if from_environment:
        raise UsageError(f"--api-key-file and the environment variable {KEY_VARIABLE} are both set; unset one of them")
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"--api-key-file {path} is not a regular file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise UsageError(
                    f"{path} is accessible to other users (mode {mode:04o}); fix it with: chmod 600 {path}"
                )
            content = os.read(descriptor, _MAX_KEY_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UsageError(f"cannot read --api-key-file {path}: {error.strerror}") from error
    if len(content) > _MAX_KEY_BYTES:
        raise UsageError(f"--api-key-file {path} has more than {_MAX_KEY_BYTES:,} bytes")
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        raise UsageError(f"--api-key-file {path} holds characters that are not ASCII") from None
    return _checked(text, f"--api-key-file {path}")


def _checked(key: str, source: str) -> ApiKey:
    if len(key) < _MIN_KEY_CHARACTERS or not re.fullmatch(r"[!-~]+", key):
        raise UsageError(
            f"{source} must hold a key of at least {_MIN_KEY_CHARACTERS} visible ASCII characters; make one with: "
            "openssl rand -hex 32"
        )
    return ApiKey.of(key)


def check_address(host: str, *, has_key: bool, has_tls: bool, allows_plain: bool) -> None:
    """Check that the server may listen on an address.

    Raises:
        UsageError: Other machines could reach it without a key, or could read the key on the way.
    """
    if is_loopback(host):
        return
    if not has_key:
        raise UsageError(
            f"--host {host} can be reached from other machines, which needs an API key: --api-key-file FILE, or the "
            f"environment variable {KEY_VARIABLE}"
        )
    if not (has_tls or allows_plain):
        raise UsageError(
            f"--host {host} can be reached from other machines, which needs TLS: --tls-cert FILE --tls-key FILE; or pass "
            "--allow-plain-http if the network in between is trusted, such as behind a proxy that ends TLS"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host, without a port, is this machine's loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def check_host(hosts: list[str]) -> None:
    """Check the Host headers of a request to a server without a key: another name may belong to anybody (DNS rebinding).

    Raises:
        ApiError: The name is not a loopback name.
    """
    if len(hosts) != 1 or not is_loopback(re.sub(r":\d+\Z", "", hosts[0])):
        raise ApiError(403, "the Host header must be a loopback address or localhost", code="host", closes=True)


def check_key(key: ApiKey, authorization: list[str]) -> None:
    """Check the Authorization headers of a request.

    Raises:
        ApiError: The key is missing or wrong.
    """
    scheme, _, given = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
    # The comparison runs in any case, so that its time says nothing about the header.
    if not key.matches(given.strip()) or scheme.lower() != "bearer":
        message = "the API key is missing or wrong; send it as the header Authorization: Bearer KEY"
        raise ApiError(401, message, code="invalid_api_key", closes=True)
