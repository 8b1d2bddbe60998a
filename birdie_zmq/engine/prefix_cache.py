"""States of beginnings, kept across batches within a bound of bytes; the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class CachedPrefix(Generic[S]):
    """A state of one row, its slots, and its size."""

    state: S
    room: int
    size_bytes: int


class PrefixCache(Generic[S]):
    """States by the bytes of the tokens that they have read.

    Args:
        limit_bytes: How much may be kept beyond what is in use.

    Attributes:
        evicted: How many states had to go.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[bytes, CachedPrefix[S]] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: bytes) -> CachedPrefix[S]:
        """The state of a beginning, which is used now.

        Raises:
            KeyError: It is not there.
        """
        self._kept.move_to_end(name)
        return self._kept[name]

    def put(self, name: bytes, kept: CachedPrefix[S]) -> None:
        """Keep a state."""
        self._kept[name] = kept
        self._kept.move_to_end(name)

    def known(self, room: int, *, exactly: bool = False) -> Collection[bytes]:
        """The beginnings whose states have so many slots, or more unless the number is meant exactly."""
        return [name for name, kept in self._kept.items() if kept.room == room or (kept.room > room and not exactly)]

    def trim(self, in_use: Collection[bytes] = ()) -> None:
        """Let go of what is over the bound, but of nothing that is in use."""
        total = sum(kept.size_bytes for kept in self._kept.values())
        for name in [name for name in self._kept if name not in in_use]:
            if total <= self._limit_bytes:
                break
            total -= self._kept.pop(name).size_bytes
            self.evicted += 1

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()


def capacity_for(room: int) -> int:
    """Slots for so many tokens; few numbers, since each is compiled for."""
    if room > 4096:
        return -(-room // 4096) * 4096
    return max(256, 1 << max(0, room - 1).bit_length())
