"""Decoding with a cache in PyTorch: a batch of rows that share one state, and one call of the model for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import GREEDY, NextTokens, PrefillStep, SamplingMetadata, TokenChoice
from birdie_zmq.engine.logprobs import spread
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tokens, Tree
from birdie_zmq.engine.torch.states import StateModel, TorchPlanStates, keep_rows, put_row, row_of, trim

Choose = Callable[[Any, Tokens, Tokens, SamplingMetadata | None], NextTokens]
"""Chooses tokens by the hidden states [b, t, d] of a step, at positions int32[q] of rows int32[q]."""


@dataclass(frozen=True)
class _PrefilledTrees:
    """A step of trees: the state of their prefix, None without one, and what a state holds of each token."""

    prefix: Any
    entries: Any
    step: Step
    kind: Tree

    def path(self, position: int) -> Tokens:
        """Return the tokens of the text that ends at a position of the step, as numbers int32[n] in the step."""
        row, last = int(self.step.rows[position]), int(self.step.positions[position])
        found = np.flatnonzero(self.kind.ends[row, : last + 1] > last)
        return (row * self.step.shape[1] + found).astype(np.int32)


@dataclass(frozen=True)
class _PrefilledRows:
    """A state, and the row of each position of a step in it."""

    state: Any
    rows: Tokens


class TorchDecoding:
    """A batch of rows of one state that are decoded together.

    Args:
        model: The model.
        states: The states of the plan's steps.
        choose: The head.
        shape: The initial number of rows, and the capacity of each in tokens.
        choice: How tokens are chosen.
        shared: The prefix that all rows share, as the bytes of its tokens. Rows hold the tokens after it.
    """

    def __init__(
        self,
        model: StateModel,
        states: TorchPlanStates,
        choose: Choose,
        shape: tuple[int, int],
        choice: TokenChoice,
        shared: bytes,
    ) -> None:
        rows, self._capacity = shape
        self._model, self._states, self._choose, self._choice = model, states, choose, choice
        self._shared = shared
        self._shared_state: Any = None  # from the first step that continues it
        with model.guard(f"the state of {rows} rows of {self._capacity} tokens"):
            self._state = model.call("init_state", rows, self._capacity)
        self._is_empty = [True] * rows
        self._prefilled: _PrefilledTrees | _PrefilledRows | None = None
        self._texts: list[list[int]] = [[0] for _ in range(rows)]
        self._sampled = np.zeros(rows, np.int32)
        self._keys = [0] * rows

    def prefill(
        self,
        step: Step,
        metadata: SamplingMetadata | None = None,
        following: PrefillStep | None = None,
        kept: int = 0,
    ) -> NextTokens:
        """Compute the next step of the plan, and choose the next token at each of its positions."""
        del following, kept  # no step is started before its turn
        with self._model.guard(f"tokens int32{list(step.shape)}"):
            self._prefilled = None  # its memory is freed first
            step = trim(step)
            match step.kind:
                case Tree() as kind:
                    hidden, entries = self._states.prefill(step.tokens, kind)
                    prefix = self._states.cached_state(kind.prefix).state if kind.prefix else None
                    if kind.prefix and kind.prefix == self._shared:
                        self._shared_state, prefix = prefix, None  # rows hold no tokens of it
                    self._prefilled = _PrefilledTrees(prefix, entries, step, kind)
                case Extend() as kind:
                    hidden = self._states.extend(step.tokens, kind)
                    if len(step.rows):
                        rows = np.arange(len(step.rows), dtype=np.int32)
                        self._prefilled = _PrefilledRows(self._states.take_current(step.rows), rows)
                case Fork() as kind:
                    hidden, state = self._states.fork(step.tokens, kind)
                    self._prefilled = _PrefilledRows(state, step.rows)
                case _:
                    raise AssertionError(f"a step of kind {type(step.kind).__name__} has no state")
            self._states.release(step)
            return self._choose(hidden, step.rows, step.positions, metadata)

    def put(self, row: int, position: int, text: Tokens, key: int = 0, sampled: int = 0) -> None:
        """Let a row continue a text of the last prefill step, whose last token is the next one to compute."""
        with self._model.guard("a prompt"):
            match self._prefilled:
                case _PrefilledTrees(prefix, entries) as trees:
                    if prefix is None and not self._is_empty[row]:
                        prefix = self._model.call("init_state", 1, self._capacity)
                    if prefix is not None:
                        put_row(self._state, row, prefix, 0)
                    # In place: a copy of a row of a thousand tokens takes as long as a decode step.
                    place, path = row_of(self._state, row), trees.path(position)
                    made = self._model.call("append", place, entries, path, len(path))
                    if made is not place:  # the model's function has returned another state
                        put_row(self._state, row, made, 0)
                case _PrefilledRows(state, rows):
                    put_row(self._state, row, state, int(rows[position]))
                case None:
                    raise AssertionError("no step was prefilled")
            self._is_empty[row] = False
            self._texts[row], self._sampled[row], self._keys[row] = text.tolist(), sampled, key

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """Decode the next token of each active row; the result has the shape [rows, 1]."""
        with self._model.guard("a decode step"):
            last = np.array([[text[-1]] for text in self._texts], np.int32)
            arguments = (last, active.astype(np.int32), self._state)
            if self._shared_state is None:
                hidden, self._state = self._model.call("extend", *arguments)
            else:
                hidden, self._state = self._model.call("extend_after", *arguments, self._shared_state)
            rows = np.flatnonzero(active).astype(np.int32)
            chosen = self._choose(hidden, rows, np.zeros_like(rows), self._metadata(rows))
            for row, token in zip(rows.tolist(), chosen.tokens.tolist(), strict=True):
                self._texts[row].append(token)
            self._sampled[rows] += 1
            return spread(chosen, rows, len(active))

    def _metadata(self, rows: Tokens) -> SamplingMetadata | None:
        if self._choice == GREEDY:
            return None
        texts = ()
        if self._choice.processing is not None:
            texts = tuple(np.array(self._texts[row], np.int32) for row in rows.tolist())  # type: ignore[assignment]
        return SamplingMetadata(self._choice, [self._keys[row] for row in rows.tolist()], self._sampled[rows], texts)

    def narrow(self, rows: Sequence[int]) -> None:
        """Keep only some rows, and renumber them in this order."""
        with self._model.guard("a smaller decode batch"):
            self._state = keep_rows(self._state, rows)
        self._is_empty = [self._is_empty[row] for row in rows]
        self._texts, self._keys = [self._texts[row] for row in rows], [self._keys[row] for row in rows]
        self._sampled = self._sampled[list(rows)]
