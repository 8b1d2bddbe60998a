"""Decoding with a cache in JAX: a batch of rows that share one state.

One call decodes several tokens, so that the host synchronises with the device once for all of them. An inactive row
keeps its state: it is extended by no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import NextTokens, TokenChoice
from birdie_zmq.engine.jax import lm_head
from birdie_zmq.engine.jax.device_model import DeviceModel
from birdie_zmq.engine.jax.executables import model_call
from birdie_zmq.engine.jax.sampling import SamplingArrays, SamplingKeys, key_data, sample, sampling_arrays
from birdie_zmq.engine.jax.states import cache_state, copy_state, create_state, extend_state
from birdie_zmq.engine.logits_processing import (
    ProcessingArrays,
    ProcessingState,
    process_logits,
    processing_arrays,
    token_history,
)
from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.steps import PAD, Tokens
from birdie_zmq.engine.prefix_cache import PrefixCache


class JaxDecoding:
    """A batch of rows of one state that are decoded together.

    Args:
        model: The model.
        prefix_cache: The cached states of shared prefixes.
        tokens_per_call: The number of tokens that one call decodes for each row.
        rows: The initial number of rows.
        capacity: The capacity of each row in tokens.
        choice: How tokens are chosen. Without a processing of logits, no executable depends on it.
    """

    def __init__(
        self,
        model: DeviceModel,
        prefix_cache: PrefixCache[Any],
        tokens_per_call: int,
        rows: int,
        capacity: int,
        choice: TokenChoice,
    ) -> None:
        self._model = model
        self._executables = model.executables
        self._sharding = model.sharding
        self._prefix_cache = prefix_cache
        self._tokens_per_call = tokens_per_call
        self._capacity = capacity
        self._processing = choice.processing
        self._sampling_arrays = self._processing_arrays = self._history = None
        with model_call(f"the state of {rows} rows of {capacity} tokens"):
            self._state = create_state(model, rows, capacity)
            if choice.sampling is not None:
                self._sampling_arrays = self._sharding.replicate(sampling_arrays(choice.sampling))
            if choice.processing is not None:
                arrays = processing_arrays(choice.processing, model.vocab_size)
                self._processing_arrays = self._sharding.replicate(arrays)
                if choice.processing.needs_history:
                    self._history = self._sharding.put_rows(np.zeros((rows, model.vocab_size), np.int32))
        self._last = np.zeros(rows, np.int32)
        self._sampled = np.zeros(rows, np.int32)
        self._keys = np.zeros((rows, 2), np.uint32)
        self._minimum = np.zeros(rows, np.int32)

    def put(
        self, row: int, prompt: Tokens, chunks: Sequence[PrefillChunk], key: int = 0, sampled: int = 0
    ) -> list[int]:
        """Prefill a prompt int32[n] in chunks and let a row continue it; return the lengths of the computed steps.

        The last token of the prompt is computed by the first decode step. Chunks within a cached prefix are skipped.
        """
        with model_call("a prompt"):
            one, begin = self._prefix(prompt, chunks)
            computed = []
            for chunk in chunks:
                if chunk.begin < begin:
                    continue
                tokens = np.full((1, chunk.size), PAD, np.int32)
                real = chunk.end - chunk.begin
                tokens[0, :real] = prompt[chunk.begin : chunk.end]
                put_tokens, lengths = map(self._sharding.put_rows, (tokens, np.array([real], np.int32)))
                _, one = extend_state(self._model, put_tokens, lengths, one, self._capacity)
                computed.append(chunk.size)
                if chunk.is_cached:
                    name = prompt[: chunk.end].tobytes()
                    cache_state(self._prefix_cache, name, one, self._capacity)
                    self._prefix_cache.trim({name})
                    one = copy_state(self._model, one, 1, self._capacity)
            states = (self._state, one, self._sharding.replicate(np.int32(row)))
            self._state = self._executables.run(("put", len(self._last), self._capacity), self._put, *states, donated=0)
            self._put_processing(row, prompt, len(prompt) - sampled)
        self._last[row], self._sampled[row], self._keys[row] = prompt[-1], sampled, key_data(key)
        return computed

    def _put_processing(self, row: int, tokens: Tokens, prompt_length: int) -> None:
        """Set what the processing of a row's logits depends on: a prompt int32[n] and the tokens generated after it."""
        if self._processing is None:
            return
        self._minimum[row] = self._processing.minimum(prompt_length)
        if self._history is not None:
            one = token_history(tokens[:prompt_length], tokens[prompt_length:], self._model.vocab_size)[None]
            arguments = (self._history, self._sharding.replicate(one), self._sharding.replicate(np.int32(row)))
            self._history = self._executables.run(("put-history", len(self._last)), self._put, *arguments, donated=0)

    def _prefix(self, prompt: Tokens, chunks: Sequence[PrefillChunk]) -> tuple[Any, int]:
        """Return a state of the longest cached prefix that may be overwritten, and the length of that prefix."""
        cached = self._prefix_cache.capacities()
        for chunk in reversed(chunks):
            name = prompt[: chunk.end].tobytes()
            if chunk.is_cached and cached.get(name) == self._capacity:
                return copy_state(self._model, self._prefix_cache.get(name).state, 1, self._capacity), chunk.end
        return create_state(self._model, 1, self._capacity), 0

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """Decode the next k tokens of each active row; the result has the shape [rows, k]."""
        with model_call("a decode step"):
            put_rows = self._sharding.put_rows
            rows = (put_rows(self._last), put_rows(active.astype(np.int32)))
            sampling = processing = None
            if self._sampling_arrays is not None:
                sampling = (self._sampling_arrays, SamplingKeys(put_rows(self._keys), put_rows(self._sampled)))
            key: tuple[Any, ...] = ("decode", len(self._last), self._capacity, self._tokens_per_call, sampling is None)
            if self._processing_arrays is not None:
                state = ProcessingState(put_rows(self._sampled), put_rows(self._minimum), self._history)
                processing = (self._processing_arrays, state)
                key += ("processed", self._history is not None)
            arguments = (self._model.params, self._state, *rows, sampling, processing)
            self._state, tokens, finite, self._history = self._executables.run(key, self._decode, *arguments, donated=1)
            chosen = NextTokens(np.asarray(tokens).T, np.asarray(finite).T)
        self._last = chosen.tokens[:, -1].copy()
        self._sampled += self._tokens_per_call
        return chosen

    def narrow(self, rows: Sequence[int]) -> None:
        """Keep only some rows, and renumber them in this order."""
        kept = np.asarray(rows, np.int32)
        with model_call("a smaller decode batch"):
            key: tuple[Any, ...] = ("narrow", len(self._last), len(kept), self._capacity)
            self._state = self._executables.run(key, self._take, self._state, self._sharding.replicate(kept))
            if self._history is not None:
                key = ("narrow-history", len(self._last), len(kept))
                self._history = self._executables.run(key, self._take, self._history, self._sharding.replicate(kept))
        self._last, self._sampled, self._keys = self._last[kept], self._sampled[kept], self._keys[kept]
        self._minimum = self._minimum[kept]

    def _decode(
        self,
        params: Any,
        state: Any,
        last: jax.Array,
        active: jax.Array,
        sampling: tuple[SamplingArrays, SamplingKeys] | None,
        processing: tuple[ProcessingArrays, ProcessingState] | None,
    ) -> Any:
        """Decode some tokens of each row; return the state, tokens [k, rows], their finiteness, and the token histories.

        Without a processing, or without a penalty, the histories are None, which is no array of the executable.
        """
        extend, unembed = self._model.functions.extend, self._model.functions.unembed
        vocab_size = self._model.vocab_size
        assert extend is not None
        assert unembed is not None

        def step(carry: tuple[Any, jax.Array, Any], number: jax.Array) -> tuple[tuple[Any, jax.Array, Any], Any]:
            state, last, history = carry
            hidden, state = extend(params, last[:, None], active, state)
            logits = unembed(params, hidden[:, 0])[:, :vocab_size]
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
            return self._sharding.shard_rows((state, token, history)), (token, finite)

        numbers = jnp.arange(self._tokens_per_call, dtype=jnp.int32)
        history = None if processing is None else processing[1].history
        (state, _, history), (tokens, finite) = jax.lax.scan(step, (state, last, history), numbers)
        tokens, finite = self._sharding.gather((tokens, finite))
        return self._sharding.shard_rows(state), tokens, finite, self._sharding.shard_rows(history)

    def _put(self, state: Any, one: Any, row: jax.Array) -> Any:
        """Replace a row of one state by row 0 of another."""

        def put(all_: jax.Array, x: jax.Array) -> jax.Array:
            if self._sharding.mesh is None:
                return jax.lax.dynamic_update_index_in_dim(all_, x[0], row, 0)  # type: ignore[no-any-return]
            # With sharded rows, each device checks whether the row is its own, so that no row is transferred.
            is_row = jnp.expand_dims(jnp.arange(len(all_)) == row, range(1, all_.ndim))
            return jnp.where(is_row, x, all_)

        return self._sharding.shard_rows(jax.tree.map(put, state, one))

    def _take(self, state: Any, rows: jax.Array) -> Any:
        return self._sharding.shard_rows(jax.tree.map(partial(jnp.take, indices=rows, axis=0), state))
