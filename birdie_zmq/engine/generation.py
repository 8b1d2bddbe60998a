"""Generation by continuous batching: when a sequence ends, the next prompt takes its row.

A model with a state prefills prompts by the same planner as scoring: many in each step, and a prefix that several share
once. It then decodes one position per token (`decode_batch`). A model without a state computes the whole row again for
every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from birdie_zmq.engine.decode_batch import DecodeBatch, answered, sampling_metadata
from birdie_zmq.engine.decode_row import Row
from birdie_zmq.engine.detokenizer import AnswerExtractor
from birdie_zmq.engine.events import Event, Notice
from birdie_zmq.engine.generation_settings import GenerationSettings, generation_settings
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.planning.cost_model import decode_step_cost
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.prefix_tree import common_prefix_length
from birdie_zmq.engine.planning.prompt_planner import plan_prompts
from birdie_zmq.engine.planning.shape_buckets import LEAST_DECODING_ROWS, StepBudget
from birdie_zmq.engine.planning.steps import Extend, Fork, ScoredSequence, Step, Tree
from birdie_zmq.engine.prefix_cache import ANY_CAPACITY, capacity_for
from birdie_zmq.engine.request_encoding import check_vocabulary, encode_prompts
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.types import GenerateWork, StepLimits

_MAX_PREFILL_TOKENS = 4096
"""The maximum number of tokens of a step that prefills trees of prompts, unless one prompt is longer."""

_MAX_PREFILL_ROWS = 16
"""The maximum number of rows of a step that prefills prompts by extending a state."""

_MIN_SHARED_TOKENS = 64
"""Fewer tokens that all prompts share are held by each row: each decode step costs more for tokens that are apart."""

_MAX_NARROWED_COST = 0.75
"""A decode step with fewer rows is compiled if it costs at most this share of the larger step."""

_RECOMPUTES = Notice(
    "info",
    "the model has no state, so each generated token computes the whole text before it again; a birdie_zmq.Model with "
    "init_state and extend computes each token once",
)


def generate(
    runner: ModelRunner, tokenizer: TokenizerAdapter, work: GenerateWork, limits: StepLimits
) -> Iterator[Event]:
    """Generate a continuation of each prompt, until that continuation ends.

    All answers that end in the same step are one event.

    Args:
        runner: The model.
        tokenizer: The model's tokenizer.
        work: The prompts and the generation parameters.
        limits: The limits that the user set for the rows of a step.

    Raises:
        RequestError: The generation parameters name a token that the model does not have.
        ItemFailed: One of the prompts cannot be continued; others may have been.
        OutOfDeviceMemory: The state of one prompt does not fit into device memory.
    """
    mode, vocab_size = runner.backend.generation_mode, runner.backend.vocab_size
    assert mode is not None
    settings = generation_settings(work.settings, tokenizer, vocab_size)
    yield from settings.notices
    prompts, notices = encode_prompts(tokenizer, work, runner.max_length)
    check_vocabulary(prompts, range(len(prompts)), vocab_size)
    yield from notices
    extractor = AnswerExtractor(tokenizer, work.settings)
    rows = [
        Row(index, prompt, work.keys[index] if work.keys else 0, extractor.begin(), work.settings.max_gen_toks)
        for index, prompt in enumerate(prompts)
    ]
    runner.counters.requests += len(rows)
    yield from decode(runner, mode, rows, settings, limits)


def decode(
    runner: ModelRunner, mode: ExecutionMode, rows: Sequence[Row], settings: GenerationSettings, limits: StepLimits
) -> Iterator[Event]:
    """Decode rows until all are finished, and yield their answers.

    Raises:
        ItemFailed: A row cannot be continued, because its logits are not finite.
        OutOfDeviceMemory: Not even one row fits into device memory.
    """
    if not mode.decodes_with_cache:
        yield _RECOMPUTES
    try:
        if mode.decodes_with_cache:
            yield from decode_with_cache(runner, mode, rows, settings, limits)
        else:
            yield from decode_without_cache(runner, mode, rows, settings, limits)
    finally:
        runner.clock.idle()


def decode_without_cache(
    runner: ModelRunner, mode: ExecutionMode, rows: Sequence[Row], settings: GenerationSettings, limits: StepLimits
) -> Iterator[Event]:
    """Decode rows with a model that has no state, and yield the rows that each step finishes.

    Raises:
        ItemFailed: A row cannot be continued, because its logits are not finite.
    """
    counters = runner.counters
    buckets = runner.buckets(mode, limits)
    waiting = list(rows)
    while waiting:
        # Only the position before the appended token is scored, so that token may have any value.
        group = mode.group([ScoredSequence(np.append(row.tokens, np.int32(0)), 1) for row in waiting])
        for step in group.plan(buckets, {}):
            owners = [waiting[owner] for owner in step.owners]
            metadata = sampling_metadata(owners, settings.choice)
            chosen = yield from runner.call([step.shape], partial(runner.backend.next_tokens, step, metadata))
            runner.clock.idle()
            counters.tokens_requested += step.used_tokens
            counters.tokens_generated += len(owners)
            counters.add_step(step.shape, step.used_tokens)
            for position, row in enumerate(owners):
                row.add(chosen, position, settings)
            yield from answered(owners)
        waiting = [row for row in waiting if not row.is_finished]


def decode_with_cache(
    runner: ModelRunner, mode: ExecutionMode, rows: Sequence[Row], settings: GenerationSettings, limits: StepLimits
) -> Iterator[Event]:
    """Decode rows with a model that has a state, and yield the rows that each step finishes.

    Raises:
        ItemFailed: A row cannot be continued, because its logits are not finite.
        OutOfDeviceMemory: Not even one row fits into device memory.
    """
    backend = runner.backend
    runner.counters.tokens_requested += sum(len(row.prompt) for row in rows)
    waiting = list(rows)
    max_rows = min(limits.max_rows or backend.budget.decoding_rows, backend.budget.decoding_rows)
    shares_prefixes = backend.shares_prefixes
    while waiting:
        unit = backend.budget.row_unit if max_rows >= backend.budget.row_unit else 1
        shared = _shared_tokens(waiting) if shares_prefixes else 0
        needed = [_capacity_for(row, backend.budget) - shared for row in waiting]
        requested = limits.rows or min(max(unit, max_rows // unit * unit), _round_up_rows(len(waiting), unit))
        size = _batch_size(runner, mode, max(needed), shared, requested, limits)
        chosen = waiting
        least = requested if backend.budget.decoding_bytes is None else min(requested, LEAST_DECODING_ROWS)
        if size.rows < least:  # memory is short: decode the longest rows first, with fewer rows together
            chosen = [row for row, need in zip(waiting, needed, strict=True) if need > max(needed) // 2]
            size = size._replace(rows=min(size.rows, _round_up_rows(len(chosen), unit)))
        try:
            plan = _plan(runner, mode, chosen, size, max(needed), shared)
            if plan is None:  # some rows do not come directly after the prefix that all share
                shares_prefixes = False
                continue
            row_counts = narrowed_row_counts(size.rows, plan.capacity, None if limits.rows else unit, backend.budget)
            # No variable refers to the batch, so its memory is freed before the next one is created, also on failure.
            decoding = partial(backend.decoding, row_counts[0], plan.capacity, settings.choice, plan.shared)
            yield from DecodeBatch(runner, decoding, row_counts, settings).run(plan.steps, chosen)
        except OutOfDeviceMemory as error:
            if limits.rows is not None or (size.rows == 1 and not backend.halve_budget()):
                raise
            max_rows = max(1, size.rows // 2)
            yield Notice("warning", f"{error}; at most {max_rows} prompts are decoded together from now on")
        waiting = [row for row in waiting if not row.is_finished]


def _shared_tokens(rows: Sequence[Row]) -> int:
    """Return the length of the prefix of all rows that is worth holding once; each row has more tokens."""
    texts = [row.tokens for row in rows]
    shortest = min(map(len, texts)) - 1
    shared = min((common_prefix_length(texts[0], text) for text in texts[1:]), default=0)
    return min(shared, shortest) if min(shared, shortest) >= _MIN_SHARED_TOKENS else 0


class _BatchSize(NamedTuple):
    """The number of rows that are decoded together, and the limits of the steps that prefill their prompts."""

    rows: int
    prefill_limits: StepLimits
    prefill_tokens: int


def _batch_size(
    runner: ModelRunner, mode: ExecutionMode, capacity: int, shared: int, requested: int, limits: StepLimits
) -> _BatchSize:
    """Return how many rows of a capacity in tokens are decoded together, so that prefilling fits into memory as well.

    `Backend.decoding_rows` leaves memory for two further rows. Trees of prompts need the memory of their tokens, and
    so do the tokens that all rows share. Rows of prompts that extend a state are held three times for a moment: there,
    as a copy, and in the decode batch.
    """
    backend = runner.backend
    if mode.keeps_entries:
        tokens = max(_MAX_PREFILL_TOKENS, capacity) * backend.budget.row_unit
        spare = max(0, -(-(min(tokens, backend.budget.tokens) + shared) // capacity) - 1)
        prefill_limits = limits
    else:
        tokens, prefill_rows = backend.budget.tokens, min(_MAX_PREFILL_ROWS, requested)
        spare, prefill_limits = 2 * prefill_rows - 2, StepLimits(max_rows=prefill_rows)
    unit = backend.budget.row_unit
    spare = -(-spare // unit) * unit  # rows are sharded only if their number is a multiple of it
    rows = backend.decoding_rows(capacity, requested, spare)
    if rows >= 1 and rows >= min(requested // 2, LEAST_DECODING_ROWS):
        return _BatchSize(_round_down_rows(rows, requested, unit), prefill_limits, tokens)
    least = StepLimits(max_rows=1)
    rows = backend.decoding_rows(capacity, requested)
    return _BatchSize(_round_down_rows(rows, requested, unit), least, min(tokens, backend.budget.chunk_tokens))


class _Plan(NamedTuple):
    """The steps that prefill rows, the capacity in tokens of each row, and the prefix that all share, as bytes."""

    steps: list[Step]
    capacity: int
    shared: bytes


def _plan(
    runner: ModelRunner, mode: ExecutionMode, rows: Sequence[Row], size: _BatchSize, capacity: int, shared: int
) -> _Plan | None:
    """Plan and start the steps that prefill rows; None if some of them do not come directly after the shared tokens."""
    backend = runner.backend
    buckets = runner.buckets(mode, size.prefill_limits, size.prefill_tokens)
    texts = [row.tokens for row in rows]
    if shared:
        prefix = texts[0][:shared].tobytes()
        steps = plan_prompts(mode, texts, buckets, backend.cached_prefixes(), shared)
        if not all(isinstance(step.kind, Tree) and step.kind.prefix == prefix for step in steps if len(step.owners)):
            return None
        backend.start_plan(steps)
        return _Plan(steps, capacity, prefix)
    fitting = (capacity_for(capacity), ANY_CAPACITY)
    usable = {prefix: each for prefix, each in backend.cached_prefixes().items() if each in fitting}
    for cached in (usable, {}):  # cached states cannot be used if the padding of the steps needs a larger capacity
        steps = plan_prompts(mode, texts, buckets, cached)
        needed = max([capacity, *(step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork))])
        if capacity_for(needed) == capacity_for(capacity):
            break
    backend.start_plan(steps, needed)
    return _Plan(steps, needed, b"")


def _capacity_for(row: Row, budget: StepBudget) -> int:
    """Return the capacity in tokens that a row may need, for its prompt and longest answer."""
    return len(row.prompt) + row.max_tokens + budget.tokens_per_call


def _round_up_rows(count: int, unit: int) -> int:
    """Round a number of rows up to 1, 2, 3, 4, 6, 8, 12, … units, because each number is compiled separately."""
    units = -(-count // unit)
    power = 1 << (units - 1).bit_length()
    less = 3 * power // 4
    return unit * (less if power >= 4 and units <= less else power)


def _round_down_rows(count: int, most: int, unit: int) -> int:
    """Return the largest number of rows up to `count` that `_round_up_rows` returns, or `most` if that is not larger."""
    if count >= most:
        return most
    return next((rows for rows in range(count // unit * unit, 0, -unit) if _round_up_rows(rows, unit) == rows), count)


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
