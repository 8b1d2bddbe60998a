"""The order of the steps of a plan on a device that computes two consecutive steps at the same time. Pure NumPy.

The chunks of a long text form a chain: each continues the state that the one before it leaves. Steps of two chains in
turn do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tree

MAX_OVERLAPPED_CAPACITY = 8192
"""The maximum capacity in tokens of the states of chains that are computed in turn, because two states are then held."""


def overlap_steps(steps: Sequence[Step]) -> list[Step]:
    """Order steps so that few of them need the result of the step directly before them.

    Apart from that, steps keep their order. At most two chains are open at a time; one of them gets the number 1. Plans
    with a `Fork`, which copies rows of the last `Extend`, are not changed.

    Args:
        steps: The steps, in an order in which they can be computed, all of chain 0.
    """
    capacities = [step.kind.capacity for step in steps if isinstance(step.kind, Extend)]
    if max(capacities, default=0) > MAX_OVERLAPPED_CAPACITY or any(isinstance(step.kind, Fork) for step in steps):
        return list(steps)
    order = _Order(_needed_steps(steps), [_continues(step) for step in steps])
    while order.waiting:
        order.append(next(order.independent(), order.waiting[0]))
    return [_in_chain(steps[number], chain) for number, chain in order.chains.items()]


@dataclass
class _Order:
    """An order of steps, as far as it is decided.

    Attributes:
        needed: For each step, the step whose state it starts from or continues; -1 if none of the plan.
        continues: For each step, whether it continues that state, so that it belongs to the same chain.
        chains: The chain of each step in the order, and so the order.
        waiting: The steps that are not in the order yet.
        open: The chains with a waiting step.
    """

    needed: list[int]
    continues: list[bool]
    chains: dict[int, int] = field(default_factory=dict)
    waiting: list[int] = field(init=False)
    open: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.waiting = list(range(len(self.needed)))
        self._continued = {needed for needed, continues in zip(self.needed, self.continues, strict=True) if continues}

    def independent(self) -> Iterator[int]:
        """Yield the waiting steps that may come next and do not need the last step."""
        last = next(reversed(self.chains), -1)
        for step in self.waiting:
            needed = self.needed[step]
            is_computed = needed == -1 or (needed != last and needed in self.chains)
            if is_computed and (self.continues[step] or len(self.open) < 2):
                yield step

    def append(self, step: int) -> None:
        """Let a step come next."""
        chain = self.chains[self.needed[step]] if self.continues[step] else min({0, 1} - self.open)
        self.open.discard(chain)
        if step in self._continued:
            self.open.add(chain)
        self.chains[step] = chain
        self.waiting.remove(step)


def _continues(step: Step) -> bool:
    """Return whether a step continues the state that the last `Extend` left."""
    return isinstance(step.kind, Extend) and step.kind.before is None


def _needed_steps(steps: Sequence[Step]) -> list[int]:
    """Return for each step the step whose state it starts from or continues; -1 if none of the plan."""
    needed, last = [], -1
    computed: dict[bytes, int] = {}
    for number, step in enumerate(steps):
        match step.kind:
            case Tree(prefix=name):
                needed.append(computed.get(name, -1))
            case Extend(before=name, after=after):
                needed.append(last if name is None else computed.get(name, -1))
                last = number
                if after is not None:
                    computed[after] = number
            case _:
                needed.append(-1)
    return needed


def _in_chain(step: Step, chain: int) -> Step:
    """Return a step as one of a chain."""
    if isinstance(step.kind, Extend) and step.kind.chain != chain:
        return replace(step, kind=replace(step.kind, chain=chain))
    return step
