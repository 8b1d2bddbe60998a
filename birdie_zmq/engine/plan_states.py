"""The states of the steps of a plan: those that the last steps left, and those of the prefix cache.

This part is the same for all frameworks. An engine's subclass creates, copies and measures states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tree
from birdie_zmq.engine.prefix_cache import CachedPrefix, PrefixCache, capacity_for


@dataclass
class CurrentState:
    """The state that the last `Extend` of a chain left; it must be copied before it is extended if ``is_cached``."""

    state: Any
    capacity: int
    is_cached: bool = False


class PlanStates(ABC):
    """The states of the steps of a plan.

    Args:
        cache: The prefix cache.
    """

    def __init__(self, cache: PrefixCache[Any]) -> None:
        self._cache = cache
        self._current: CurrentState | None = None  # of the last `Extend`
        self._chains: dict[int, CurrentState] = {}
        self._pending_uses = Counter[bytes]()  # remaining steps of the plan that start from each prefix
        self._capacity = 0

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:
        """Prepare for a plan with states of at least this capacity in tokens; its steps are computed next, in order."""
        self._drop_current()
        self._pending_uses = Counter(name for step in steps if (name := _prefix_of(step)))
        capacities = [step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork)]
        self._capacity = self.capacity_for(max([capacity, *capacities]))
        self._cache.trim(self._pending_uses)

    def clear(self) -> None:
        """Drop all states."""
        self._cache.clear()
        self._drop_current()

    def release(self, step: Step) -> None:
        """Count down the uses of a step's prefix; a state without uses left may be evicted."""
        name = _prefix_of(step)
        if name:
            self._pending_uses[name] -= 1
            self._pending_uses += Counter()  # drops counts of zero

    def cached_state(self, prefix: bytes) -> CachedPrefix[Any]:
        """Return the cached state of a prefix, as the bytes of its tokens."""
        return self._cache.get(prefix)

    def capacity_for(self, tokens: int) -> int:
        """Return the capacity in tokens of a state for this many tokens."""
        return capacity_for(tokens)

    @abstractmethod
    def _create(self, rows: int, capacity: int) -> Any:
        """Create an empty state of `rows` rows with a capacity of `capacity` tokens each."""

    @abstractmethod
    def _copy(self, state: Any, rows: int, capacity: int) -> Any:
        """Repeat the row of a one-row state `rows` times, in new memory."""

    @abstractmethod
    def _size_bytes(self, state: Any) -> int:
        """Return the bytes that a state takes on each of its devices."""

    def _drop_current(self) -> None:
        self._current = None
        self._chains.clear()

    def _state_to_extend(self, kind: Extend) -> CurrentState:
        """Return the state that a step extends, which may be overwritten."""
        before, rows = kind.before, len(kind.lengths)
        if before == b"":
            return CurrentState(self._create(rows, self._capacity), self._capacity)
        if before is not None:
            cached = self._cache.get(before)
            return CurrentState(self._copy(cached.state, rows, cached.capacity), cached.capacity)
        current = self._chains[kind.chain]
        if not current.is_cached:
            return current
        return CurrentState(self._copy(current.state, 1, current.capacity), current.capacity)

    def _keep(self, kind: Extend, state: Any, capacity: int) -> None:
        """Let the state after a step be its chain's current one, and cache it if a later step starts from it."""
        after = kind.after
        self._current = self._chains[kind.chain] = CurrentState(state, capacity)
        if after is not None and after in self._pending_uses:
            self._cache.put(after, CachedPrefix(state, capacity, self._size_bytes(state)))
            self._current.is_cached = True
            self._cache.trim(self._pending_uses)


def _prefix_of(step: Step) -> bytes | None:
    """Return the prefix whose cached state a step starts from, or None."""
    match step.kind:
        case Tree(prefix=name) | Extend(before=name):
            return name or None
    return None
