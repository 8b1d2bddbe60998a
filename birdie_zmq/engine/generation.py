"""Generation by continuous batching: when a sequence ends, the next prompt takes its row.

A model with a state prefills each prompt once, computes a prefix that several prompts share only once, and then decodes
one position per token. A model without a state computes the whole row again for every token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np

from birdie_zmq.engine.backend import GREEDY, Backend, Decoding, SamplingMetadata, TokenChoice
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.detokenizer import IncrementalDetokenizer
from birdie_zmq.engine.planning.cost_model import decode_row_cost, decode_step_cost, prefill_cost, step_cost
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.prefill_planner import PrefillPlan, plan_prefills
from birdie_zmq.engine.planning.shape_buckets import PREFILL_CHUNK_SIZES, Buckets, Shape, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens
from birdie_zmq.engine.scoring import NonFiniteScore
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.types import StepLimits

_MAX_NARROWED_COST = 0.75
"""A decode step with fewer rows is compiled if it costs at most this share of the larger step."""

CallContext = Callable[[Sequence[Shape]], AbstractContextManager[None]]
"""Makes the context that is entered around calls of the model, from the shapes of these calls."""


@dataclass(eq=False)
class Row:
    """A prompt and its answer so far.

    Attributes:
        index: The number of the request.
        prompt: The tokens int32[n] of the prompt, n > 0.
        key: The random key.
        answer: The generated tokens.
    """

    index: int
    prompt: Tokens
    key: int
    answer: IncrementalDetokenizer

    @property
    def tokens(self) -> Tokens:
        """The tokens int32[n] of the prompt and of the answer so far."""
        return np.concatenate([self.prompt, np.array(self.answer.tokens, np.int32)])


@dataclass(frozen=True)
class StopConditions:
    """Conditions, other than stop strings, that end an answer: an EOS token or the maximum number of tokens.

    Attributes:
        eos_token_ids: The tokens that end an answer.
        max_gen_toks: The maximum number of tokens of an answer.
        kept_token_ids: The EOS tokens that belong to the answer.
    """

    eos_token_ids: Collection[int]
    max_gen_toks: int
    kept_token_ids: Collection[int] = ()

    def add_token(self, row: Row, token: int) -> bool:
        """Append a row's next token, unless it is an EOS token; return whether the answer is finished."""
        if token in self.eos_token_ids:
            if token in self.kept_token_ids:
                row.answer.add(token)
            return True
        return row.answer.add(token) or len(row.answer.tokens) >= self.max_gen_toks


def decode_without_cache(
    backend: Backend,
    mode: ExecutionMode,
    rows: Sequence[Row],
    stop: StopConditions,
    choice: TokenChoice,
    buckets: Buckets,
    on_call: CallContext,
    counters: Counters,
) -> Iterator[Row]:
    """Decode rows with a model that has no state, and yield each row that is finished.

    Args:
        backend: The model.
        mode: How it computes texts.
        rows: The rows.
        stop: The conditions that end an answer.
        choice: How tokens are chosen.
        buckets: The shapes that steps may have.
        on_call: Makes the context that is entered around calls of the model.
        counters: Counts what is computed.

    Raises:
        NonFiniteScore: A row cannot be continued, because its logits are not finite.
    """
    waiting = list(rows)
    while waiting:
        finished: set[int] = set()
        cost = 0
        # Only the position before the appended token is scored, so that token may have any value.
        items = [ScoredSequence(np.append(row.tokens, np.int32(0)), 1) for row in waiting]
        for step in mode.group(items).plan(buckets, {}):
            metadata = None
            if choice != GREEDY:
                owners = [waiting[owner] for owner in step.owners]
                generated = np.array([len(row.answer.tokens) for row in owners], np.int32)
                metadata = SamplingMetadata(choice, [row.key for row in owners], generated)
            with on_call([step.shape]):
                chosen = backend.next_tokens(step, metadata)
            cost += step_cost(step, backend.budget)
            counters.tokens_requested += step.used_tokens
            counters.add_step(step.shape, step.used_tokens)
            for owner, token, finite in zip(step.owners, chosen.tokens, chosen.finite, strict=True):
                row = waiting[owner]
                if not finite:
                    raise NonFiniteScore(row.index)
                counters.tokens_generated += 1
                if stop.add_token(row, int(token)):
                    finished.add(int(owner))
                    yield row
        active_lengths = [len(row.answer.tokens) for number, row in enumerate(waiting) if number not in finished]
        counters.decode_progress(cost, active_lengths, [len(waiting[number].answer.tokens) for number in finished])
        counters.decode_rows, counters.decode_step_cost, counters.decode_row_cost = 1, cost // len(waiting), 0
        waiting = [row for number, row in enumerate(waiting) if number not in finished]


def decode_with_cache(
    backend: Backend,
    rows: Sequence[Row],
    stop: StopConditions,
    choice: TokenChoice,
    limits: StepLimits,
    on_call: CallContext,
    counters: Counters,
    out_of_memory: Callable[[OutOfDeviceMemory, int], None],
) -> Iterator[Row]:
    """Decode rows with a model that has a state, and yield each row that is finished.

    Args:
        backend: The model.
        rows: The rows.
        stop: The conditions that end an answer.
        choice: How tokens are chosen.
        limits: The limits that the user set for the rows of a step.
        on_call: Makes the context that is entered around calls of the model.
        counters: Counts what is computed.
        out_of_memory: Called when fewer rows are decoded together from now on, with their new number.

    Raises:
        NonFiniteScore: A row cannot be continued, because its logits are not finite.
        OutOfDeviceMemory: Not even one row fits into device memory.
    """
    counters.tokens_requested += sum(len(row.prompt) - 1 for row in rows)
    waiting = list(rows)
    max_rows = min(limits.max_rows or backend.budget.decoding_rows, backend.budget.decoding_rows)
    while waiting:
        unit = backend.budget.row_unit if max_rows >= backend.budget.row_unit else 1
        plans = all_plans = plan_prefills([row.tokens for row in waiting], backend.budget.call_tokens)
        needed = {plan.number: _capacity_for(waiting[plan.number], plan, stop, backend) for plan in plans}
        largest = max(needed.values())
        requested = limits.rows or min(max(unit, max_rows // unit * unit), _round_up_rows(len(waiting), unit))
        count = limits.rows or backend.decoding_rows(largest, requested)
        if count < requested:  # decode the longest rows first, with fewer rows together
            plans = [plan for plan in plans if needed[plan.number] > largest // 2]
            count = min(count, _round_up_rows(len(plans), unit))
        work = [(waiting[plan.number], plan) for plan in plans]
        budget = backend.budget
        narrow_by = None if limits.rows else unit
        shapes = {(1, chunk.size) for plan in all_plans for chunk in plan.chunks}
        row_counts = narrowed_row_counts(count, largest, narrow_by, budget)
        counters.plan(
            sum(prefill_cost(plan.chunks, budget) for plan in all_plans),
            shapes | {(row_count, 1) for row_count in row_counts},
        )
        finished: set[int] = set()
        try:
            # No variable refers to the batch, so its memory is freed before the next one is created, also on failure.
            decoding = partial(backend.decoding, choice=choice)
            for row in _DecodeBatch(backend, decoding, row_counts, largest, on_call, counters).run(work, stop):
                finished.add(id(row))
                yield row
        except OutOfDeviceMemory as error:
            if count == 1 or limits.rows is not None:
                raise
            max_rows = count // 2
            out_of_memory(error, max_rows)
        waiting = [row for row in waiting if id(row) not in finished]


def _capacity_for(row: Row, plan: PrefillPlan, stop: StopConditions, backend: Backend) -> int:
    """Return the capacity that a row may need: for its padded prefill chunks, or for its prompt and longest answer."""
    return max(plan.capacity, len(row.prompt) + stop.max_gen_toks + backend.budget.tokens_per_call)


def _round_up_rows(count: int, unit: int) -> int:
    """Round a number of rows up to 1, 2, 3, 4, 6, 8, 12, … units, because each number is compiled separately."""
    units = -(-count // unit)
    power = 1 << (units - 1).bit_length()
    less = 3 * power // 4
    return unit * (less if power >= 4 and units <= less else power)


def narrowed_row_counts(count: int, capacity: int, unit: int | None, budget: StepBudget) -> tuple[int, ...]:
    """Return the numbers of rows that a decode batch may have: the first one, and fewer as sequences end.

    Each number is compiled separately, which is worth it if a decode step then costs a quarter less.

    Args:
        count: The first number of rows.
        capacity: The capacity of each row in tokens.
        unit: All smaller numbers are multiples of this; None keeps the first number.
        budget: Determines the costs by which decode steps are compared.
    """
    row_counts = [count]
    for fewer in range(count - 1, 0, -1) if unit else ():
        row_count = _round_up_rows(fewer, unit or 1)
        if decode_step_cost(row_count, capacity, budget) <= _MAX_NARROWED_COST * decode_step_cost(
            row_counts[-1], capacity, budget
        ):
            row_counts.append(row_count)
    return tuple(row_counts)


class _DecodeBatch:
    """Rows that are decoded together in one state.

    Args:
        backend: The model.
        decoding: Creates the decode batch from its number of rows and their capacity.
        row_counts: The numbers of rows that the batch may have. It begins with the first; free rows are dropped at the
            end.
        capacity: The capacity of each row in tokens.
        on_call: Makes the context that is entered around calls of the model.
        counters: Counts what is computed.
    """

    def __init__(
        self,
        backend: Backend,
        decoding: Callable[[int, int], Decoding],
        row_counts: Sequence[int],
        capacity: int,
        on_call: CallContext,
        counters: Counters,
    ) -> None:
        self._decoding: Decoding = decoding(row_counts[0], capacity)
        self._rows: list[Row | None] = [None] * row_counts[0]
        self._row_counts = row_counts
        self._capacity = capacity
        self._on_call = on_call
        self._counters = counters
        self._budget = backend.budget
        counters.allow_shapes({(1, length) for length in PREFILL_CHUNK_SIZES})

    def run(self, work: Sequence[tuple[Row, PrefillPlan]], stop: StopConditions) -> Iterator[Row]:
        """Decode rows by their prefill plans, and yield each row that is finished."""
        waiting = deque(work)
        while waiting or any(self._rows):
            for number, row in enumerate(self._rows):
                if row is None and waiting:
                    self._prefill(number, *waiting.popleft())
            if not waiting:
                self._narrow()
            yield from self._decode(stop)

    def _prefill(self, number: int, row: Row, plan: PrefillPlan) -> None:
        shapes = [(1, chunk.size) for chunk in plan.chunks]
        with self._on_call(shapes):
            lengths = self._decoding.put(number, row.tokens, plan.chunks, row.key, len(row.answer.tokens))
        self._rows[number] = row
        self._counters.complete(prefill_cost(plan.chunks, self._budget))
        for chunk in plan.chunks[len(plan.chunks) - len(lengths) :]:
            self._counters.add_step((1, chunk.size), chunk.end - chunk.begin)

    def _narrow(self) -> None:
        """Drop free rows, as far as a smaller number of rows is allowed; called when no prompt waits."""
        active = [number for number, row in enumerate(self._rows) if row is not None]
        count = min(row_count for row_count in self._row_counts if row_count >= len(active))
        if count >= len(self._rows):
            return
        free = [number for number, row in enumerate(self._rows) if row is None]
        kept = sorted(active + free[: count - len(active)])
        self._decoding.narrow(kept)
        self._rows = [self._rows[number] for number in kept]

    def _decode(self, stop: StopConditions) -> Iterator[Row]:
        shape = (len(self._rows), 1)
        self._counters.allow_shapes([shape])
        with self._on_call([shape]):
            chosen = self._decoding.decode(np.array([row is not None for row in self._rows]))
        used = 0
        active = sum(row is not None for row in self._rows)
        finished: list[Row] = []
        for number, row in enumerate(self._rows):
            if row is None:
                continue
            for token, finite in zip(chosen.tokens[number], chosen.finite[number], strict=True):
                if not finite:
                    raise NonFiniteScore(row.index)
                used += 1
                if stop.add_token(row, int(token)):
                    self._rows[number] = None
                    finished.append(row)
                    break
        self._counters.tokens_requested += used
        self._counters.add_decode_step(len(self._rows), chosen.tokens.shape[1], active, used)
        active_lengths = [len(row.answer.tokens) for row in self._rows if row is not None]
        cost = decode_step_cost(len(self._rows), self._capacity, self._budget)
        self._counters.decode_progress(
            cost * chosen.tokens.shape[1], active_lengths, [len(row.answer.tokens) for row in finished]
        )
        self._counters.decode_rows, self._counters.decode_step_cost = len(self._rows), cost
        self._counters.decode_row_cost = decode_row_cost(self._capacity, self._budget)
        yield from finished
