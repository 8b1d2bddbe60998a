"""Authentication of connections to a broker with keys, by pyzmq's authenticator, and a summary of refused connections.

libzmq asks the authenticator, over ZAP, about every peer that has proved that it holds the secret key of a key pair and knows
the broker's public key. Other peers are refused by libzmq itself, and only the socket's monitor reports them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import zmq
from zmq.auth.thread import ThreadAuthenticator

from birdie_zmq.errors import InternalError
from birdie_zmq.protocol.security.allow_list import AllowList

DOMAIN = "birdie-zmq"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
"""The interval between two log lines about refused connections; it doubles while they continue, so as not to fill a disk."""
HANDSHAKE_MS = 10_000
"""The timeout of the handshake of a peer without a valid key; until then libzmq buffers up to a frame of its data."""
_HANDSHAKE_ERRORS: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "no key (a client needs key_file= in model_args, a worker --key-file)",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "a key file for a broker with another key",
}


class Authentication:
    """The authentication of one ROUTER socket: only allowed keys may connect.

    Args:
        context: The context of the socket.
        socket: The socket, not yet bound.
        allowed: The keys that may connect.
    """

    EVENTS = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], allowed: AllowList) -> None:
        self._allowed = allowed
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._last_unknown = ""
        self._logged_at = time.monotonic() - _FIRST_PAUSE_S
        self._pause_s = _FIRST_PAUSE_S
        self._authenticator = _Authenticator(context)
        self._authenticator.configure_curve_callback(DOMAIN, self)
        self._authenticator.start()
        socket.curve_server = True
        socket.curve_secretkey = allowed.pair.secret.encode()
        socket.zap_domain = DOMAIN.encode()
        # Otherwise libzmq would allow peers with any key at all if the authenticator were gone.
        socket.zap_enforce_domain = True
        socket.handshake_ivl = HANDSHAKE_MS

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key is allowed (called by pyzmq, in the authenticator's thread)."""
        del domain
        reason = "a key that is not allowed"
        try:
            if self._allowed.allows(key.decode()):
                return True
        except Exception as error:  # noqa: BLE001  It would end the thread, so that no more handshakes are answered.
            reason = f"a key that could not be looked up ({error!r:.200})"
        with self._lock:
            self._refused[reason] += 1
            self._last_unknown = f"{key.decode()} from {self._authenticator.address or 'this machine'}"
        return False

    def handshake_failed(self, event: int, value: int) -> None:
        """Count one of EVENTS; refused keys are counted by `callback`, which knows more about them."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            reason = _HANDSHAKE_ERRORS.get(value, "an invalid CURVE handshake")
        else:
            reason = "no handshake, connection closed (a port scan, or a peer without a key)"
        with self._lock:
            self._refused[reason] += 1

    def refusal_summary(self) -> str | None:
        """Return a line about the connections refused since the last line, None if there are none or it is too early.

        Raises:
            InternalError: The authenticator's thread is dead, so no peer can connect any more.
        """
        if not self._authenticator.is_alive():
            raise InternalError("the thread that checks keys has ended; start the broker again")
        quiet_s = time.monotonic() - self._logged_at
        if quiet_s > 2 * self._pause_s:
            self._pause_s = _FIRST_PAUSE_S
        with self._lock:
            if not self._refused or quiet_s < self._pause_s:
                return None
            refused, self._refused = self._refused, Counter()
            last, self._last_unknown = self._last_unknown, ""
        self._logged_at += quiet_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        line = "; ".join(f"{count} with {reason}" for reason, count in refused.items())
        return f"refused connections: {line}" + (f"; the last key was {last}" if last else "")

    def stop(self) -> None:
        """Stop the authenticator's thread; the socket must be closed."""
        self._authenticator.stop()


class _Authenticator(ThreadAuthenticator):
    """pyzmq's authenticator, extended to remember the address of the last peer."""

    address = ""

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        self.address = msg[3].decode(errors="replace") if len(msg) > 3 else ""
        await super().handle_zap_message(msg)
