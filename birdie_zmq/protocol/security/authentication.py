"""Which connections a broker with keys lets in, by pyzmq's authenticator, and a word about those that it does not.

libzmq asks the authenticator, over ZAP, about everybody who has shown that they hold the secret half of a key and know
the broker's public one. Who has not got so far is refused by libzmq alone, and only the socket's monitor tells of it.
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
"""The time between two lines about refused connections, which doubles while they go on: they must not fill a disk."""
HANDSHAKE_MS = 10_000
"""How long a stranger may stay who does not show a key; meanwhile libzmq keeps up to a frame of what it sends."""
_WHY: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "no key (a client needs key_file= in model_args, a worker --key-file)",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "a key file for a broker with another key",
}


class Authentication:
    """Lets the holders of allowed keys connect to one socket.

    Args:
        context: The socket's.
        socket: The socket, which is not bound yet.
        allowed: Who may connect.
    """

    EVENTS = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], allowed: AllowList) -> None:
        self._allowed = allowed
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._last_unknown = ""
        self._told_at = time.monotonic() - _FIRST_PAUSE_S
        self._pause_s = _FIRST_PAUSE_S
        self._authenticator = _Authenticator(context)
        self._authenticator.configure_curve_callback(DOMAIN, self)
        self._authenticator.start()
        socket.curve_server = True
        socket.curve_secretkey = allowed.pair.secret.encode()
        socket.zap_domain = DOMAIN.encode()
        # Otherwise libzmq lets in everybody who has any key at all, should the authenticator be gone.
        socket.zap_enforce_domain = True
        socket.handshake_ivl = HANDSHAKE_MS

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a key is let in (called by pyzmq, in the authenticator's thread)."""
        del domain
        reason = "a key that is not among those let in"
        try:
            if self._allowed.admits(key.decode()):
                return True
        except Exception as error:  # noqa: BLE001  It would end the thread, and with it all further handshakes.
            reason = f"a key that could not be looked up ({error!r:.200})"
        with self._lock:
            self._refused[reason] += 1
            self._last_unknown = f"{key.decode()} from {self._authenticator.address or 'this machine'}"
        return False

    def handshake_failed(self, event: int, value: int) -> None:
        """Take in one of EVENTS; of a key that is refused, the callback knows more."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            reason = _WHY.get(value, "what is no handshake with CURVE")
        else:
            reason = "nothing and hung up (a port scan, or a peer without a key)"
        with self._lock:
            self._refused[reason] += 1

    def told(self) -> str | None:
        """One line about the connections refused since the last line, None if there are none or it is too early.

        Raises:
            InternalError: The authenticator's thread is dead, so nobody can connect any more.
        """
        if not self._authenticator.is_alive():
            raise InternalError("the thread that checks keys has ended; start the broker again")
        quiet_s = time.monotonic() - self._told_at
        if quiet_s > 2 * self._pause_s:
            self._pause_s = _FIRST_PAUSE_S
        with self._lock:
            if not self._refused or quiet_s < self._pause_s:
                return None
            refused, self._refused = self._refused, Counter()
            last, self._last_unknown = self._last_unknown, ""
        self._told_at += quiet_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        line = "; ".join(f"{count} brought {reason}" for reason, count in refused.items())
        return f"refused connections: {line}" + (f"; the last key was {last}" if last else "")

    def stop(self) -> None:
        """End the authenticator's thread, once the socket is closed."""
        self._authenticator.stop()


class _Authenticator(ThreadAuthenticator):
    """pyzmq's authenticator, which remembers the address that it is asked about."""

    address = ""

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        self.address = msg[3].decode(errors="replace") if len(msg) > 3 else ""
        await super().handle_zap_message(msg)
