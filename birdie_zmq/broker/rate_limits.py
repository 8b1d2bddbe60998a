"""How much others can make the broker say: to themselves in refusals, and to a person in its log.

A peer is told what is wrong with each of its first messages that make no sense, then once a second for as long as none
does: a flood gets no flood of answers, and one whose messages crossed with a restart of the broker still learns of it.
The log has lines for what happens first, then so many a second, which say how many there would have been.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

_MOST_LINE = 500
_MOST_PEERS = 4096
"""Peers that are remembered for what they sent; whoever makes connections without end is forgotten for others."""


@dataclass
class _Sender:
    in_a_row: int = 0
    told_at: float = -math.inf


class RefusalLimiter:
    """Whom to answer.

    Args:
        most_in_a_row: How many refusals in a row a peer gets at once.
        pause_s: How far apart those after them are.
    """

    def __init__(self, most_in_a_row: int, pause_s: float = 1.0) -> None:
        self._most_in_a_row = most_in_a_row
        self._pause_s = pause_s
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()

    def tells(self, peer: bytes, now: float) -> bool:
        """Take in that a message of a peer makes no sense; whether the peer is told."""
        sender = self._senders.setdefault(peer, _Sender())
        self._senders.move_to_end(peer)
        if len(self._senders) > _MOST_PEERS:
            self._senders.popitem(last=False)
        sender.in_a_row += 1
        if sender.in_a_row > self._most_in_a_row and now - sender.told_at < self._pause_s:
            return False
        sender.told_at = now
        return True

    def made_sense(self, peer: bytes) -> None:
        """Take in that a message of a peer was taken."""
        self._senders.pop(peer, None)


class LogLimiter:
    """Which lines to write.

    Args:
        at_once: How many may be written without a pause between them.
        per_s: How many a second after that.
    """

    def __init__(self, at_once: int, per_s: float) -> None:
        self._at_once = at_once
        self._per_s = per_s
        self._left = float(at_once)
        self._counted_at = 0.0
        self._held_back = 0

    def write(self, text: str, now: float) -> str | None:
        """The line to write now, None if it is held back; it says how many were before it."""
        if not self._take(now):
            self._held_back += 1
            return None
        held_back, self._held_back = self._held_back, 0
        line = one_line(text)
        return f"{line} (and {held_back} lines before it that were not written)" if held_back else line

    def rest(self, now: float) -> str | None:
        """What to write of the lines that were held back, if it is time to; None if it is not, or none was."""
        if not self._held_back or not self._take(now):
            return None
        held_back, self._held_back = self._held_back, 0
        return f"{held_back} more lines were not written"

    def _take(self, now: float) -> bool:
        self._left = min(self._at_once, self._left + max(0.0, now - self._counted_at) * self._per_s)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def one_line(text: str, most: int = _MOST_LINE) -> str:
    """A text that others had a part in, such as the name of a host: no more lines than one, and nothing for a terminal."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]} …"
