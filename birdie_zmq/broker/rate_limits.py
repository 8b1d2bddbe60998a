"""Rate limits on the refusals that the broker sends and on the log lines that peers cause.

A peer gets a Refusal for each of its first invalid messages, then one a second until it sends a valid message. So a
flood of invalid messages causes no flood of refusals, and a peer whose messages crossed with a restart of the broker
still learns of the restart. The log takes a burst of lines, then a limited number of lines per second; a line
after suppressed lines states their number.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from birdie_zmq.sanitize import one_line

_MAX_PEERS = 4096
"""Maximum number of peers whose invalid messages are counted; the least recently counted peer is dropped first."""


@dataclass
class _PeerRefusals:
    consecutive: int = 0
    sent_at: float = -math.inf


class RefusalLimiter:
    """A rate limit on the refusals that are sent to each peer.

    Args:
        burst: Number of consecutive invalid messages of a peer that are each answered.
        interval_s: Seconds between later refusals.
    """

    def __init__(self, burst: int, interval_s: float = 1.0) -> None:
        self._burst = burst
        self._interval_s = interval_s
        self._peers: OrderedDict[bytes, _PeerRefusals] = OrderedDict()

    def allow(self, peer: bytes, now: float) -> bool:
        """Count an invalid message of a peer, and return whether to send a refusal."""
        state = self._peers.setdefault(peer, _PeerRefusals())
        self._peers.move_to_end(peer)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)
        state.consecutive += 1
        if state.consecutive > self._burst and now - state.sent_at < self._interval_s:
            return False
        state.sent_at = now
        return True

    def reset(self, peer: bytes) -> None:
        """Forget the invalid messages of a peer, because it has sent a valid one."""
        self._peers.pop(peer, None)


class LogLimiter:
    """A rate limit on the lines that are written to the log, as a token bucket.

    Args:
        burst: Number of lines that may be written without a pause between them.
        per_s: Number of lines per second after the burst.
    """

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._tokens = float(burst)
        self._refilled_at = 0.0
        self._suppressed = 0

    def admit(self, text: str, now: float) -> str | None:
        """Return the line to write, with the number of lines suppressed before it, or None if this one is suppressed."""
        if not self._take_token(now):
            self._suppressed += 1
            return None
        suppressed, self._suppressed = self._suppressed, 0
        line = one_line(text)
        return f"{line} (suppressed {suppressed} lines before it)" if suppressed else line

    def suppressed(self, now: float) -> str | None:
        """Return a line with the number of suppressed lines, or None if there are none or the limit still holds."""
        if not self._suppressed or not self._take_token(now):
            return None
        suppressed, self._suppressed = self._suppressed, 0
        return f"suppressed {suppressed} more lines"

    def _take_token(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._refilled_at) * self._per_s)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
