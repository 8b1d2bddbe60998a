"""Generation: prompts are continued side by side, each until its own end, when the next one takes its place.

Models with a state read each prompt once, what several begin with only once, and carry on from there. Models without
one read the whole row anew for every token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from birdie_zmq.engine.backend import Backend, Decoding, SamplingMetadata
from birdie_zmq.engine.counters import Counters, Shape
from birdie_zmq.engine.detokenizer import IncrementalDetokenizer
from birdie_zmq.engine.planning.cost_model import decode_row_cost, decode_step_cost, prefill_cost, step_cost
from birdie_zmq.engine.planning.prefill_planner import PrefillPlan, plan_prefills
from birdie_zmq.engine.planning.row_planner import plan_rows
from birdie_zmq.engine.planning.shape_buckets import PROMPT_PIECES, Buckets, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens
from birdie_zmq.engine.scoring import NonFiniteScore
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.types import SamplingParams, StepLimits

_WORTH_NARROWING = 0.75
"""Of what a round costs, the most that one with fewer rows may cost to be compiled."""

Called = Callable[[Sequence[Shape]], AbstractContextManager[None]]
"""Entered around calls of the model, whose shapes it is told."""


@dataclass(eq=False)
class Row:
    """A prompt int32[n], n > 0, the number of its request, its random key, and its answer so far."""

    index: int
    prompt: Tokens
    key: int
    answer: IncrementalDetokenizer

    @property
    def tokens(self) -> Tokens:
        """The prompt and the answer."""
        return np.concatenate([self.prompt, np.array(self.answer.tokens, np.int32)])


@dataclass(frozen=True)
class StopConditions:
    """Where answers end, beside their stop strings: at these tokens, and after so many."""

    eos_token_ids: Collection[int]
    max_gen_toks: int

    def take(self, row: Row, token: int) -> bool:
        """Give a row its next token; whether its answer is finished."""
        if token in self.eos_token_ids:
            return True
        return row.answer.add(token) or len(row.answer.tokens) >= self.max_gen_toks


def decode_without_cache(
    backend: Backend,
    rows: Sequence[Row],
    ends: StopConditions,
    sampling: SamplingParams | None,
    buckets: Buckets,
    called: Called,
    tally: Counters,
) -> Iterator[Row]:
    """Continue rows by a model without a state: each that is finished.

    Raises:
        NotFinite: A row cannot be continued.
    """
    waiting = list(rows)
    while waiting:
        finished: set[int] = set()
        cost = 0
        # One more token, any, stands for the one that is looked for.
        for step in plan_rows([ScoredSequence(np.append(row.tokens, np.int32(0)), 1) for row in waiting], buckets):
            drawing = None
            if sampling is not None:
                asking = [waiting[owner] for owner in step.owners]
                drawn = np.array([len(row.answer.tokens) for row in asking], np.int32)
                drawing = SamplingMetadata(sampling, [row.key for row in asking], drawn)
            with called([step.shape]):
                chosen = backend.next_tokens(step, drawing)
            cost += step_cost(step, backend.budget)
            tally.tokens_requested += step.used_tokens
            tally.step(step.shape, step.used_tokens)
            for owner, token, finite in zip(step.owners, chosen.tokens, chosen.finite, strict=True):
                row = waiting[owner]
                if not finite:
                    raise NonFiniteScore(row.index)
                tally.tokens_generated += 1
                if ends.take(row, int(token)):
                    finished.add(int(owner))
                    yield row
        active_lengths = [len(row.answer.tokens) for number, row in enumerate(waiting) if number not in finished]
        tally.came_on(cost, active_lengths, [len(waiting[number].answer.tokens) for number in finished])
        tally.decode_rows, tally.decode_step_cost, tally.decode_row_cost = 1, cost // len(waiting), 0
        waiting = [row for number, row in enumerate(waiting) if number not in finished]


def decode_with_cache(
    backend: Backend,
    rows: Sequence[Row],
    ends: StopConditions,
    sampling: SamplingParams | None,
    limits: StepLimits,
    called: Called,
    tally: Counters,
    out_of_memory: Callable[[OutOfDeviceMemory, int], None],
) -> Iterator[Row]:
    """Continue rows by a model with a state: each that is finished.

    Args:
        backend: The model.
        rows: The rows.
        ends: Where they end.
        sampling: How tokens are drawn; None takes the most likely one.
        limits: What the user said of the rows of a step.
        called: Entered around calls of the model.
        tally: Counts.
        out_of_memory: Told when fewer rows are continued side by side, and how many.

    Raises:
        NotFinite: A row cannot be continued.
        OutOfDeviceMemory: There is no room for even one row.
    """
    tally.tokens_requested += sum(len(row.prompt) - 1 for row in rows)
    waiting = list(rows)
    most = min(limits.max_rows or backend.budget.decoding_rows, backend.budget.decoding_rows)
    while waiting:
        unit = backend.budget.row_unit if most >= backend.budget.row_unit else 1
        readings = all_readings = plan_prefills([row.tokens for row in waiting], backend.budget.call_tokens)
        needed = {reading.number: _slots(waiting[reading.number], reading, ends, backend) for reading in readings}
        largest = max(needed.values())
        wanted = limits.rows or min(max(unit, most // unit * unit), _width(len(waiting), unit))
        count = limits.rows or backend.decoding_rows(largest, wanted)
        if count < wanted:  # the longest ones have less company
            readings = [reading for reading in readings if needed[reading.number] > largest // 2]
            count = min(count, _width(len(readings), unit))
        work = [(waiting[reading.number], reading) for reading in readings]
        budget = backend.budget
        narrow_by = None if limits.rows else unit
        shapes = {(1, piece.size) for reading in all_readings for piece in reading.pieces}
        widths = narrowing_widths(count, largest, narrow_by, budget)
        tally.plan(
            sum(prefill_cost(reading.pieces, budget) for reading in all_readings),
            shapes | {(width, 1) for width in widths},
        )
        finished: set[int] = set()
        try:
            # Nothing holds a session when it is over, nor when it failed: the next one wants its memory.
            for row in _Session(backend, sampling, widths, largest, called, tally).run(work, ends):
                finished.add(id(row))
                yield row
        except OutOfDeviceMemory as error:
            if count == 1 or limits.rows is not None:
                raise
            most = count // 2
            out_of_memory(error, most)
        waiting = [row for row in waiting if id(row) not in finished]


def _slots(row: Row, reading: PrefillPlan, ends: StopConditions, backend: Backend) -> int:
    """What a row may need of a state: its pieces with their padding, or all that will be decoded."""
    return max(reading.slots, len(row.prompt) + ends.max_gen_toks + backend.budget.decoded)


def _width(count: int, unit: int) -> int:
    """As many rows, or the few more that make it one of 1, 2, 3, 4, 6, 8, 12, … units: each is compiled on its own."""
    units = -(-count // unit)
    power = 1 << (units - 1).bit_length()
    less = 3 * power // 4
    return unit * (less if power >= 4 and units <= less else power)


def narrowing_widths(count: int, capacity: int, unit: int | None, budget: StepBudget) -> tuple[int, ...]:
    """So many rows, and the fewer ones with which to go on when rows have ended, whole units of them; None: never fewer.

    Each is compiled on its own, which is worth it where a round costs a quarter less.
    """
    widths = [count]
    for fewer in range(count - 1, 0, -1) if unit else ():
        width = _width(fewer, unit or 1)
        if decode_step_cost(width, capacity, budget) <= _WORTH_NARROWING * decode_step_cost(
            widths[-1], capacity, budget
        ):
            widths.append(width)
    return tuple(widths)


class _Session:
    """Rows side by side in one state, as many as the first of the widths says, and at the end fewer."""

    def __init__(
        self,
        backend: Backend,
        sampling: SamplingParams | None,
        widths: Sequence[int],
        capacity: int,
        called: Called,
        tally: Counters,
    ) -> None:
        self._decoding: Decoding = backend.decoding(widths[0], capacity, sampling)
        self._slots: list[Row | None] = [None] * widths[0]
        self._widths = widths
        self._capacity = capacity
        self._called = called
        self._tally = tally
        self._budget = backend.budget
        tally.allow({(1, length) for length in PROMPT_PIECES})

    def run(self, work: Sequence[tuple[Row, PrefillPlan]], ends: StopConditions) -> Iterator[Row]:
        """Continue rows; each that is finished."""
        waiting = deque(work)
        while waiting or any(self._slots):
            for number, taken in enumerate(self._slots):
                if taken is None and waiting:
                    self._put(number, *waiting.popleft())
            if not waiting:
                self._narrow()
            yield from self._decode(ends)

    def _put(self, number: int, row: Row, reading: PrefillPlan) -> None:
        shapes = [(1, piece.size) for piece in reading.pieces]
        with self._called(shapes):
            read = self._decoding.put(number, row.tokens, reading.pieces, row.key, len(row.answer.tokens))
        self._slots[number] = row
        self._tally.read(prefill_cost(reading.pieces, self._budget))
        for piece in reading.pieces[len(reading.pieces) - len(read) :]:
            self._tally.step((1, piece.size), piece.end - piece.begin)

    def _narrow(self) -> None:
        """When nothing waits, go on without rows that are empty."""
        active = [number for number, row in enumerate(self._slots) if row is not None]
        count = min(width for width in self._widths if width >= len(active))
        if count >= len(self._slots):
            return
        empty = [number for number, row in enumerate(self._slots) if row is None]
        kept = sorted(active + empty[: count - len(active)])
        self._decoding.narrow(kept)
        self._slots = [self._slots[number] for number in kept]

    def _decode(self, ends: StopConditions) -> Iterator[Row]:
        shape = (len(self._slots), 1)
        self._tally.allow([shape])
        with self._called([shape]):
            chosen = self._decoding.decode(np.array([row is not None for row in self._slots]))
        used = 0
        active = sum(row is not None for row in self._slots)
        finished: list[Row] = []
        for number, row in enumerate(self._slots):
            if row is None:
                continue
            for token, finite in zip(chosen.tokens[number], chosen.finite[number], strict=True):
                if not finite:
                    raise NonFiniteScore(row.index)
                used += 1
                if ends.take(row, int(token)):
                    self._slots[number] = None
                    finished.append(row)
                    break
        self._tally.tokens_requested += used
        self._tally.decode(len(self._slots), chosen.tokens.shape[1], active, used)
        active_lengths = [len(row.answer.tokens) for row in self._slots if row is not None]
        cost = decode_step_cost(len(self._slots), self._capacity, self._budget)
        self._tally.came_on(cost * chosen.tokens.shape[1], active_lengths, [len(row.answer.tokens) for row in finished])
        self._tally.decode_rows, self._tally.decode_step_cost = len(self._slots), cost
        self._tally.decode_row_cost = decode_row_cost(self._capacity, self._budget)
        yield from finished
