"""Decoding with a cache in JAX: a batch of rows that share one state.

One call decodes several tokens, so that the host synchronises with the device once for all of them. An inactive row
keeps its state: it is extended by no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import NextTokens, PrefillStep, SamplingMetadata, TokenChoice
from birdie_zmq.engine.jax import lm_head
from birdie_zmq.engine.jax.decode_state import DecodeState, PrefilledRows, PrefilledTrees, replace_row, take_rows
from birdie_zmq.engine.jax.device_model import DeviceModel
from birdie_zmq.engine.jax.executables import model_call
from birdie_zmq.engine.jax.position_head import PendingTokens, PositionHead, as_next_tokens
from birdie_zmq.engine.jax.sampling import SamplingArrays, SamplingKeys, key_data, sample, sampling_arrays
from birdie_zmq.engine.jax.states import JaxPlanStates
from birdie_zmq.engine.logits_processing import (
    ProcessingArrays,
    ProcessingState,
    process_logits,
    processing_arrays,
    token_history,
)
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import CachedPrefix


class _Started(NamedTuple):
    """A step that the device may still be computing; `prefilled` is None if no text ends in it."""

    step: Step
    tokens: PendingTokens
    prefilled: PrefilledTrees | PrefilledRows | None


class JaxDecoding:
    """A batch of rows of one state that are decoded together.

    Args:
        model: The model.
        head: Its head at the positions of a step.
        states: The states of the plan's steps.
        tokens_per_call: The number of tokens that one call decodes for each row.
        state: The state of the rows.
        choice: How tokens are chosen. Without a processing of logits, no executable depends on it.
        shared: The prefix that all rows share, as the bytes of its tokens. Rows hold the tokens after it.
    """

    def __init__(
        self,
        model: DeviceModel,
        head: PositionHead,
        states: JaxPlanStates,
        tokens_per_call: int,
        state: DecodeState,
        choice: TokenChoice,
        shared: bytes,
    ) -> None:
        self._model = model
        self._executables = model.executables
        self._sharding = model.sharding
        self._head = head
        self._states = states
        self._prefilled: list[tuple[int, PrefilledTrees | PrefilledRows | None]] = []  # with its first position
        self._started: _Started | None = None
        self._shared = shared
        self._shared_state: CachedPrefix[Any] | None = None  # from the first step that continues it
        self._tokens_per_call = tokens_per_call
        self._processing = choice.processing
        self._top = min(choice.top, model.vocab_size)
        self._state = state
        self._history: Any = None
        self._sampling_arrays = self._processing_arrays = None
        with model_call("the parameters of sampling"):
            if choice.sampling is not None:
                self._sampling_arrays = self._sharding.replicate(sampling_arrays(choice.sampling))
            if choice.processing is not None:
                arrays = processing_arrays(choice.processing, model.vocab_size)
                self._processing_arrays = self._sharding.replicate(arrays)
        self._last = np.zeros(state.rows, np.int32)
        self._lengths = np.zeros(state.rows, np.int32)  # the tokens of the state
        self._sampled = np.zeros(state.rows, np.int32)
        self._keys = np.zeros((state.rows, 2), np.uint32)
        self._minimum = np.zeros(state.rows, np.int32)

    def prefill(
        self,
        step: Step,
        metadata: SamplingMetadata | None = None,
        following: PrefillStep | None = None,
        kept: int = 0,
    ) -> NextTokens:
        """Compute the next step of the plan, and choose the next token at each of its positions."""
        if not kept:
            self._prefilled.clear()  # its memory is freed first
        started, self._started = self._started or self._start(step, metadata), None
        assert started.step is step
        if following is not None:
            self._started = self._start(*following)
        self._prefilled.append((kept, started.prefilled))
        with model_call(f"tokens int32{list(step.shape)}"):
            return started.tokens.result()

    def _start(self, step: Step, metadata: SamplingMetadata | None) -> _Started:
        """Start to compute a step, and to choose the tokens after its texts."""
        with model_call(f"tokens int32{list(step.shape)}"), self._executables.dispatch.step():
            prefilled: PrefilledTrees | PrefilledRows | None = None
            tokens = self._sharding.put_rows(step.tokens)
            match step.kind:
                case Tree() as kind:
                    hidden, entries = self._states.prefill(tokens, kind)
                    prefilled = self._prefilled_trees(entries, step, kind)
                case Extend() as kind:
                    hidden = self._states.extend(tokens, kind)
                    if len(step.rows):
                        rows = np.arange(len(step.rows), dtype=np.int32)
                        prefilled = PrefilledRows(*self._take(step.rows), rows)
                case Fork() as kind:
                    hidden, state, capacity = self._states.keep_fork(tokens, kind)
                    prefilled = PrefilledRows(state, capacity, step.rows)
                case _:
                    raise AssertionError(f"a step of kind {type(step.kind).__name__} has no state")
            self._states.release(step)
            return _Started(step, self._head.next_tokens(hidden, step, metadata), prefilled)

    def _prefilled_trees(self, entries: Any, step: Step, kind: Tree) -> PrefilledTrees:
        if not kind.prefix:
            return PrefilledTrees(None, 0, 0, entries, step, kind)
        cached = self._states.cached_state(kind.prefix)
        if kind.prefix != self._shared:
            return PrefilledTrees(cached.state, len(kind.prefix) // 4, cached.capacity, entries, step, kind)
        self._shared_state = cached
        return PrefilledTrees(None, 0, 0, entries, step, kind)  # rows hold no tokens of the shared prefix

    def _take(self, rows: Tokens) -> tuple[Any, int]:
        """Return a copy of some rows of the state that the last step left, and its capacity in tokens."""
        count = 1 << (len(rows) - 1).bit_length()  # each count is compiled separately
        state, capacity = self._states.take_current(np.pad(rows, (0, count - len(rows))))
        return state, capacity

    def put(self, row: int, position: int, text: Tokens, key: int = 0, sampled: int = 0) -> None:
        """Let a row continue a text of the last prefill step, whose last token int32[] is the next one to compute."""
        first, prefilled = next(each for each in reversed(self._prefilled) if each[0] <= position)
        assert prefilled is not None
        tokens = len(text) - 1 - len(self._shared) // 4
        if self._state.arrays is None:
            self._create_state(tokens)
        with model_call("a prompt"):
            self._state.make_room(tokens)
            self._state.put(row, prefilled, position - first)
            self._put_processing(row, text, len(text) - sampled)
        self._last[row], self._lengths[row] = text[-1], tokens
        self._sampled[row], self._keys[row] = sampled, key_data(key)

    def _create_state(self, tokens: int) -> None:
        """Create the state, for the rows that remain when the first text, of this many tokens, is put into one."""
        rows = self._state.rows
        with model_call(f"the state of {rows} rows"):
            self._state.create(tokens)
            if self._processing is not None and self._processing.needs_history:
                self._history = self._sharding.put_rows(np.zeros((rows, self._model.vocab_size), np.int32))

    def _put_processing(self, row: int, tokens: Tokens, prompt_length: int) -> None:
        """Set what the processing of a row's logits depends on: a prompt int32[n] and the tokens generated after it."""
        if self._processing is None:
            return
        self._minimum[row] = self._processing.minimum(prompt_length)
        if self._history is not None:
            one = token_history(tokens[:prompt_length], tokens[prompt_length:], self._model.vocab_size)[None]
            arguments = (self._history, self._sharding.replicate(one), self._sharding.replicate(np.int32(row)))
            put = partial(replace_row, self._sharding)
            self._history = self._executables.run(("put-history", len(self._last)), put, *arguments, donated=0)

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """Decode the next k tokens of each active row; the result has the shape [rows, k]."""
        with model_call("a decode step"):
            self._state.make_room(int(self._lengths[active].max(initial=0)) + self._tokens_per_call)
            put_rows = self._sharding.put_rows
            rows = (put_rows(self._last), put_rows(active.astype(np.int32)))
            sampling = processing = None
            if self._sampling_arrays is not None:
                sampling = (self._sampling_arrays, SamplingKeys(put_rows(self._keys), put_rows(self._sampled)))
            key: tuple[Any, ...] = (
                "decode",
                len(self._last),
                self._state.capacity,
                self._tokens_per_call,
                sampling is None,
            )
            if self._processing_arrays is not None:
                state = ProcessingState(put_rows(self._sampled), put_rows(self._minimum), self._history)
                processing = (self._processing_arrays, state)
                key += ("processed", self._history is not None)
            shared = None
            if self._shared_state is not None:
                shared = self._shared_state.state
                key += ("shared", self._shared_state.capacity)
            if self._top:
                key += ("top", self._top)
            arguments = (self._model.params, self._state.arrays, *rows, sampling, processing, shared)
            self._state.arrays, columns, self._history = self._executables.run(key, self._decode, *arguments, donated=1)
            chosen = as_next_tokens([np.swapaxes(np.asarray(column), 0, 1) for column in columns])
        self._last = chosen.tokens[:, -1].copy()
        self._lengths[active] += self._tokens_per_call
        self._sampled += self._tokens_per_call
        return chosen

    def narrow(self, rows: Sequence[int]) -> None:
        """Keep only some rows, and renumber them in this order."""
        kept = np.asarray(rows, np.int32)
        with model_call("a smaller decode batch"):
            if self._history is not None:
                key = ("narrow-history", len(self._last), len(kept))
                take, kept_rows = partial(take_rows, self._sharding), self._sharding.replicate(kept)
                self._history = self._executables.run(key, take, self._history, kept_rows)
            self._state.keep(rows)
        self._last, self._lengths, self._sampled = self._last[kept], self._lengths[kept], self._sampled[kept]
        self._keys, self._minimum = self._keys[kept], self._minimum[kept]

    def _decode(
        self,
        params: Any,
        state: Any,
        last: jax.Array,
        active: jax.Array,
        sampling: tuple[SamplingArrays, SamplingKeys] | None,
        processing: tuple[ProcessingArrays, ProcessingState] | None,
        shared: Any,
    ) -> Any:
        """Decode some tokens of each row; return the state, columns [k, rows, …], and the token histories.

        The columns are the tokens, their finiteness, and their log-probabilities if these are asked for. Without a processing, or without a penalty, the histories are None, which is no array of the executable. So is the
        shared prefix, if there is none.
        """
        functions, vocab_size = self._model.functions, self._model.vocab_size
        extend = functions.extend if shared is None else functions.extend_after
        prefix = () if shared is None else (shared,)
        unembed = functions.unembed
        assert extend is not None
        assert unembed is not None

        def step(carry: tuple[Any, jax.Array, Any], number: jax.Array) -> tuple[tuple[Any, jax.Array, Any], Any]:
            state, last, history = carry
            hidden, state = extend(params, last[:, None], active, state, *prefix)
            logits = own = unembed(params, hidden[:, 0])[:, :vocab_size]
            if processing is not None:
                now = processing[1]._replace(generated=processing[1].generated + number, history=history)
                logits = process_logits(jnp, logits.astype(jnp.float32), processing[0], now)
            if sampling is None:
                token, finite = lm_head.greedy_tokens(logits)
            else:
                arrays, keys = sampling
                token, finite = sample(logits, arrays, keys._replace(sampled=keys.sampled + number))
            if history is not None:  # compared, not scattered: on a mesh no row is transferred
                history += jnp.arange(vocab_size, dtype=jnp.int32) == token[:, None]
            columns = (token, finite, *lm_head.logprobs_of(own, token, self._top))
            return self._sharding.shard_rows((state, token, history)), columns

        numbers = jnp.arange(self._tokens_per_call, dtype=jnp.int32)
        history = None if processing is None else processing[1].history
        (state, _, history), columns = jax.lax.scan(step, (state, last, history), numbers)
        return self._sharding.shard_rows(state), self._sharding.gather(columns), self._sharding.shard_rows(history)
