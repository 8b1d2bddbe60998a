"""A batch of rows that are decoded together: when a sequence ends, the next prompt takes its row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from birdie_zmq.engine.backend import GREEDY, Decoding, PrefillStep, SamplingMetadata, TokenChoice
from birdie_zmq.engine.decode_row import Row
from birdie_zmq.engine.events import Answered, Event, PartlyAnswered
from birdie_zmq.engine.generation_settings import GenerationSettings
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.planning.steps import Step


def answered(rows: Sequence[Row]) -> Iterator[Event]:
    """Yield the answers of the finished rows among some that have new tokens, and parts of the others."""
    finished = [row for row in rows if row.is_finished]
    if finished:
        yield Answered([row.index for row in finished], [row.result() for row in finished])
    parts = [(row.index, part) for row in rows if not row.is_finished and (part := row.part()) is not None]
    if parts:
        yield PartlyAnswered([index for index, _ in parts], [part for _, part in parts])


def sampling_metadata(rows: Sequence[Row], choice: TokenChoice) -> SamplingMetadata | None:
    """Return how the next token of each row is chosen; None for the most likely one."""
    if choice == GREEDY:
        return None
    generated = np.array([len(row.answer.tokens) for row in rows], np.int32)
    texts = tuple(row.tokens for row in rows) if choice.processing is not None else ()
    return SamplingMetadata(choice, [row.key for row in rows], generated, texts)


class DecodeBatch:
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
        self._has_put = False
        self._has_started = False  # the device may be computing the next step of the plan
        self._prefilled = deque[tuple[int, Row]]()  # texts of the last prefill step that wait for a row
        self._positions = 0  # that prefill steps have kept

    def run(self, steps: Sequence[Step], prompts: Sequence[Row]) -> Iterator[Event]:
        """Prefill prompts by the steps of a plan, decode them, and yield the rows that each step finishes."""
        waiting = deque(steps)
        while waiting or self._prefilled or any(self._rows):
            yield from self._fill(waiting, prompts)
            if not waiting and not self._prefilled:
                self._narrow()
            if any(self._rows):
                yield from self._decode()

    def _fill(self, waiting: deque[Step], prompts: Sequence[Row]) -> Iterator[Event]:
        """Put prefilled texts into the free rows, and prefill more as long as rows are free."""
        free = [number for number, row in enumerate(self._rows) if row is None]
        while free and (self._prefilled or waiting):
            if not self._prefilled:
                self._positions = 0
                yield from self._prefill(waiting, prompts)
                continue
            if not self._has_put and self._has_started and len(waiting) == 1:
                # The device computes the last step already. Its tokens tell how many texts need a row.
                yield from self._prefill(waiting, prompts)
                continue
            if not self._has_put:
                self._narrow_to(sum(not row.is_finished for row in prompts))
                free, self._has_put = list(range(len(self._rows))), True
            position, row = self._prefilled.popleft()
            number = free.pop(0)
            put = partial(self._decoding.put, number, position, row.tokens, row.key, len(row.answer.tokens))
            yield from self._runner.call([], put)
            self._rows[number] = row

    def _prefill(self, waiting: deque[Step], prompts: Sequence[Row]) -> Iterator[Event]:
        """Compute the next step of the plan; each text that ends in it gets its next token."""
        step = waiting.popleft()
        counters, owners = self._runner.counters, [prompts[owner] for owner in step.owners]
        shapes, following = [step.shape], None
        if waiting and self._runner.backend.budget.overlaps_steps:
            following = self._with_metadata(waiting[0], prompts)
            shapes.append(waiting[0].shape)
        prefill = partial(self._decoding.prefill, *self._with_metadata(step, prompts), following, self._positions)
        chosen = yield from self._runner.call(shapes, prefill)
        self._has_started = following is not None
        if owners and not self._has_started:
            self._runner.clock.idle()
        counters.add_step(step.shape, step.used_tokens)
        counters.tokens_generated += len(owners)
        for position, row in enumerate(owners):
            row.add(chosen, position, self._settings)
        self._prefilled.extend(
            (self._positions + position, row) for position, row in enumerate(owners) if not row.is_finished
        )
        self._positions += len(owners)
        yield from answered(owners)

    def _with_metadata(self, step: Step, prompts: Sequence[Row]) -> PrefillStep:
        """Return a step of the plan, and how the tokens after its texts are chosen."""
        return step, sampling_metadata([prompts[owner] for owner in step.owners], self._settings.choice)

    def _narrow(self) -> None:
        """Drop free rows, as far as a smaller number of rows is allowed; called when no prompt waits."""
        active = sum(row is not None for row in self._rows)
        if active:
            self._narrow_to(active)

    def _narrow_to(self, needed: int) -> None:
        """Drop free rows, as far as a smaller number of at least `needed` rows is allowed."""
        count = min((row_count for row_count in self._row_counts if row_count >= needed), default=len(self._rows))
        if count >= len(self._rows):
            return
        active = [number for number, row in enumerate(self._rows) if row is not None]
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
        if not self._has_started:
            self._runner.clock.idle()
        used = 0
        for number, row in active.items():
            for position in range(chosen.tokens.shape[1]):
                used += 1
                row.add(chosen, (number, position), self._settings)
                if row.is_finished:
                    self._rows[number] = None
                    break
        counters.tokens_requested += used
        counters.add_decode_step(len(self._rows), chosen.tokens.shape[1], len(active), used)
        yield from answered(list(active.values()))
