"""Generation by continuous batching: when a sequence ends, the next prompt takes its row.

A model with a state prefills each prompt once, computes a prefix that several prompts share only once, and then decodes
one position per token. A model without a state computes the whole row again for every token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from birdie_zmq.engine.backend import GREEDY, Decoding, SamplingMetadata
from birdie_zmq.engine.detokenizer import AnswerExtractor, IncrementalDetokenizer
from birdie_zmq.engine.events import Answered, Event, ItemFailed, Notice
from birdie_zmq.engine.generation_settings import GenerationSettings, generation_settings
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.output_checks import non_finite_logits
from birdie_zmq.engine.planning.cost_model import decode_step_cost
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.prefill_planner import PrefillPlan, plan_prefills
from birdie_zmq.engine.planning.shape_buckets import PREFILL_CHUNK_SIZES, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens
from birdie_zmq.engine.request_encoding import check_vocabulary, encode_prompts
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.types import GenerateWork, StepLimits

_MAX_NARROWED_COST = 0.75
"""A decode step with fewer rows is compiled if it costs at most this share of the larger step."""

_RECOMPUTES = Notice(
    "info",
    "the model has no state, so each generated token computes the whole text before it again; a birdie_zmq.Model with "
    "init_state and extend computes each token once",
)


@dataclass(eq=False)
class Row:
    """A prompt and its answer so far.

    Attributes:
        index: The number of the request.
        prompt: The tokens int32[n] of the prompt, n > 0.
        key: The random key.
        answer: The generated tokens.
        is_finished: Whether the answer is complete.
    """

    index: int
    prompt: Tokens
    key: int
    answer: IncrementalDetokenizer
    is_finished: bool = False

    @property
    def tokens(self) -> Tokens:
        """The tokens int32[n] of the prompt and of the answer so far."""
        return np.concatenate([self.prompt, np.array(self.answer.tokens, np.int32)])


def generate(
    runner: ModelRunner, mode: ExecutionMode, tokenizer: TokenizerAdapter, work: GenerateWork, limits: StepLimits
) -> Iterator[Event]:
    """Generate a continuation of each prompt, until that continuation ends.

    All answers that end in the same step are one event.

    Args:
        runner: The model.
        mode: How the model computes texts.
        tokenizer: The model's tokenizer.
        work: The prompts and the generation parameters.
        limits: The limits that the user set for the rows of a step.

    Raises:
        RequestError: The generation parameters name a token that the model does not have.
        ItemFailed: One of the prompts cannot be continued; others may have been.
        OutOfDeviceMemory: The state of one prompt does not fit into device memory.
    """
    vocab_size = runner.backend.vocab_size
    settings = generation_settings(work.settings, tokenizer, vocab_size)
    yield from settings.notices
    prompts, notices = encode_prompts(tokenizer, work, runner.max_length)
    check_vocabulary(prompts, range(len(prompts)), vocab_size)
    yield from notices
    extractor = AnswerExtractor(tokenizer, work.settings)
    rows = [
        Row(index, prompt, work.keys[index] if work.keys else 0, extractor.begin())
        for index, prompt in enumerate(prompts)
    ]
    runner.counters.requests += len(rows)
    if not mode.decodes_with_cache:
        yield _RECOMPUTES
    try:
        if mode.decodes_with_cache:
            yield from decode_with_cache(runner, rows, settings, limits)
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
            metadata = None
            if settings.choice != GREEDY:
                generated = np.array([len(row.answer.tokens) for row in owners], np.int32)
                metadata = SamplingMetadata(settings.choice, [row.key for row in owners], generated)
            chosen = yield from runner.call([step.shape], partial(runner.backend.next_tokens, step, metadata))
            runner.clock.idle()
            counters.tokens_requested += step.used_tokens
            counters.tokens_generated += len(owners)
            counters.add_step(step.shape, step.used_tokens)
            for row, token, finite in zip(owners, chosen.tokens, chosen.finite, strict=True):
                _add_token(row, int(token), bool(finite), settings)
            yield from _answered([row for row in owners if row.is_finished])
        waiting = [row for row in waiting if not row.is_finished]


def decode_with_cache(
    runner: ModelRunner, rows: Sequence[Row], settings: GenerationSettings, limits: StepLimits
) -> Iterator[Event]:
    """Decode rows with a model that has a state, and yield the rows that each step finishes.

    Raises:
        ItemFailed: A row cannot be continued, because its logits are not finite.
        OutOfDeviceMemory: Not even one row fits into device memory.
    """
    backend = runner.backend
    runner.counters.tokens_requested += sum(len(row.prompt) - 1 for row in rows)
    runner.counters.allow_shapes({(1, length) for length in PREFILL_CHUNK_SIZES})
    waiting = list(rows)
    max_rows = min(limits.max_rows or backend.budget.decoding_rows, backend.budget.decoding_rows)
    while waiting:
        unit = backend.budget.row_unit if max_rows >= backend.budget.row_unit else 1
        plans = plan_prefills([row.tokens for row in waiting], backend.budget.call_tokens)
        needed = {plan.number: _capacity_for(waiting[plan.number], plan, settings, backend.budget) for plan in plans}
        largest = max(needed.values())
        requested = limits.rows or min(max(unit, max_rows // unit * unit), _round_up_rows(len(waiting), unit))
        count = limits.rows or backend.decoding_rows(largest, requested)
        if count < requested:  # decode the longest rows first, with fewer rows together
            plans = [plan for plan in plans if needed[plan.number] > largest // 2]
            count = min(count, _round_up_rows(len(plans), unit))
        row_counts = narrowed_row_counts(count, largest, None if limits.rows else unit, backend.budget)
        prefills = [(waiting[plan.number], plan) for plan in plans]
        try:
            # No variable refers to the batch, so its memory is freed before the next one is created, also on failure.
            decoding = partial(backend.decoding, row_counts[0], largest, settings.choice)
            yield from _DecodeBatch(runner, decoding, row_counts, settings).run(prefills)
        except OutOfDeviceMemory as error:
            if count == 1 or limits.rows is not None:
                raise
            max_rows = count // 2
            yield Notice("warning", f"{error}; at most {max_rows} prompts are decoded together from now on")
        waiting = [row for row in waiting if not row.is_finished]


def _add_token(row: Row, token: int, is_finite: bool, settings: GenerationSettings) -> None:
    if not is_finite:
        raise ItemFailed(row.index, non_finite_logits())
    row.is_finished = settings.stop.add_token(row.answer, token)


def _answered(finished: Sequence[Row]) -> Iterator[Event]:
    if finished:
        yield Answered([row.index for row in finished], [row.answer.text() for row in finished])


def _capacity_for(row: Row, plan: PrefillPlan, settings: GenerationSettings, budget: StepBudget) -> int:
    """Return the capacity that a row may need: for its padded prefill chunks, or for its prompt and longest answer."""
    return max(plan.capacity, len(row.prompt) + settings.stop.max_gen_toks + budget.tokens_per_call)


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
        runner: The model.
        decoding: Creates the decode batch with the first number of rows.
        row_counts: The numbers of rows that the batch may have. It begins with the first; free rows are dropped at the
            end.
        settings: What ends an answer.
    """

    def __init__(
        self,
        runner: ModelRunner,
        decoding: Callable[[], Decoding],
        row_counts: Sequence[int],
        settings: GenerationSettings,
    ) -> None:
        self._runner = runner
        self._decoding = decoding()
        self._rows: list[Row | None] = [None] * row_counts[0]
        self._row_counts = row_counts
        self._settings = settings

    def run(self, prefills: Sequence[tuple[Row, PrefillPlan]]) -> Iterator[Event]:
        """Decode rows by their prefill plans, and yield the rows that each step finishes."""
        waiting = deque(prefills)
        while waiting or any(self._rows):
            for number, row in enumerate(self._rows):
                if row is None and waiting:
                    yield from self._prefill(number, *waiting.popleft())
            if not waiting:
                self._narrow()
            yield from self._decode()

    def _prefill(self, number: int, row: Row, plan: PrefillPlan) -> Iterator[Event]:
        put = partial(self._decoding.put, number, row.tokens, plan.chunks, row.key, len(row.answer.tokens))
        lengths = yield from self._runner.call([(1, chunk.size) for chunk in plan.chunks], put)
        self._rows[number] = row
        for chunk in plan.chunks[len(plan.chunks) - len(lengths) :]:
            self._runner.counters.add_step((1, chunk.size), chunk.end - chunk.begin)

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

    def _decode(self) -> Iterator[Event]:
        counters, shape = self._runner.counters, (len(self._rows), 1)
        counters.allow_shapes([shape])
        active = {number: row for number, row in enumerate(self._rows) if row is not None}
        is_active = np.array([row is not None for row in self._rows])
        chosen = yield from self._runner.call([shape], partial(self._decoding.decode, is_active))
        self._runner.clock.idle()
        used = 0
        for number, row in active.items():
            for token, finite in zip(chosen.tokens[number], chosen.finite[number], strict=True):
                used += 1
                _add_token(row, int(token), bool(finite), self._settings)
                if row.is_finished:
                    self._rows[number] = None
                    break
        counters.tokens_requested += used
        counters.add_decode_step(len(self._rows), chosen.tokens.shape[1], len(active), used)
        yield from _answered([row for row in active.values() if row.is_finished])
