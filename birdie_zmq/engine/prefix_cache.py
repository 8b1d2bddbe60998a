"""The prefix cache: states of prefixes, kept across batches, bounded in bytes, evicted least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")

ANY_CAPACITY = 2**30
"""The capacity in tokens of a state whose size does not depend on it, such as that of a recurrence."""


@dataclass(frozen=True)
class CachedPrefix(Generic[S]):
    """A cached state of one row after a prefix.

    Attributes:
        state: The state.
        capacity: Its capacity in tokens; `ANY_CAPACITY` if its size does not depend on it.
        size_bytes: Its size in bytes.
    """

    state: S
    capacity: int
    size_bytes: int


class PrefixCache(Generic[S]):
    """A cache of states, by the bytes of the tokens of their prefixes.

    Args:
        limit_bytes: The size to which `trim` reduces the cache; entries in use may exceed it.

    Attributes:
        evicted: The number of states that were evicted.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[bytes, CachedPrefix[S]] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CachedPrefix[S]:
        """Return the entry of a prefix, and mark it as used now.

        Raises:
            KeyError: The prefix is not cached.
        """
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: bytes, entry: CachedPrefix[S]) -> None:
        """Add or replace the entry of a prefix, and mark it as used now."""
        self._entries[key] = entry
        self._entries.move_to_end(key)

    def capacities(self) -> Mapping[bytes, int]:
        """Return the capacity in tokens of each prefix's state, least recently used first."""
        return {key: entry.capacity for key, entry in self._entries.items()}

    def trim(self, in_use: Collection[bytes] = ()) -> None:
        """Evict the least recently used entries that are not in use, until the cache is within its limit."""
        total = sum(entry.size_bytes for entry in self._entries.values())
        for key in [key for key in self._entries if key not in in_use]:
            if total <= self._limit_bytes:
                break
            total -= self._entries.pop(key).size_bytes
            self.evicted += 1

    def clear(self) -> None:
        """Remove all entries; they do not count as evicted."""
        self._entries.clear()


def capacity_for(tokens: int) -> int:
    """Round a number of tokens up to one of a few capacities, because each capacity is compiled separately."""
    if tokens > 4096:
        return -(-tokens // 4096) * 4096
    return max(256, 1 << max(0, tokens - 1).bit_length())
