"""The head at the positions of a step: the scores of its targets, or the next tokens.

Only these positions are gathered, cast to float32 and normalised on the device, in chunks of a few sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import GREEDY, NextTokens, PendingScores, SamplingMetadata, TokenScores, TopTokens
from birdie_zmq.engine.jax import lm_head
from birdie_zmq.engine.jax.device_model import DeviceModel
from birdie_zmq.engine.jax.executables import Compiled, model_call
from birdie_zmq.engine.jax.sampling import SamplingArrays, SamplingKeys, key_data, sample, sampling_arrays
from birdie_zmq.engine.logits_processing import (
    ProcessingArrays,
    ProcessingState,
    process_logits,
    processing_arrays,
    step_state,
)
from birdie_zmq.engine.planning.chunks import chunk_sizes
from birdie_zmq.engine.planning.steps import Step, Tokens

_POSITION_COUNTS = tuple(32 << power for power in range(8))
"""The numbers of positions that the head may be applied to in one call."""

_GATHERED_LOGITS_BYTES = 2**27
"""Maximum memory for the gathered float32 logits of one call, if the model has no `unembed_part`."""

_SMALLEST_BLOCK = 1024
"""The smallest block of the vocabulary, in tokens."""


class _ScoreChunks:
    """The scores of a step, in chunks on the device."""

    def __init__(self, chunks: list[tuple[int, Any]]) -> None:
        self._chunks = chunks

    def result(self) -> TokenScores:
        """Wait for the scores and return them."""
        with model_call("a step"):
            columns = zip(
                *([np.asarray(column)[:count] for column in chunk] for count, chunk in self._chunks), strict=True
            )
            logprobs, greedy, finite, *top = (np.concatenate(column) for column in columns)
            return TokenScores(logprobs, greedy, finite, TopTokens(*top) if top else None)


class _EmptyScores:
    """The scores of a step without targets."""

    def __init__(self, top: int) -> None:
        self._top = top

    def result(self) -> TokenScores:
        """Return empty arrays."""
        top = TopTokens(np.zeros((0, self._top), np.int32), np.zeros((0, self._top), np.float32))
        scores = np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.bool_)
        return TokenScores(*scores, top if self._top else None)


class PendingTokens:
    """The next tokens at the positions of a step, in chunks on the device."""

    def __init__(self, chunks: list[tuple[int, Any]]) -> None:
        self._chunks = chunks

    def result(self) -> NextTokens:
        """Wait for the tokens and return them."""
        if not self._chunks:
            return NextTokens(np.zeros(0, np.int32), np.zeros(0, np.bool_))
        columns = zip(*([np.asarray(column)[:count] for column in chunk] for count, chunk in self._chunks), strict=True)
        return as_next_tokens([np.concatenate(column) for column in columns])


class PositionHead:
    """The head of a model.

    Args:
        model: The model.
        makes_logits: Whether steps give logits instead of hidden states.
    """

    def __init__(self, model: DeviceModel, *, makes_logits: bool) -> None:
        self._model = model
        self._makes_logits = makes_logits
        self._scores_in_blocks = model.functions.unembed_part is not None and not makes_logits

    def score(self, outputs: Any, step: Step, head_bytes: int, top: int = 0) -> PendingScores:
        """Start to score the targets of a step.

        Args:
            outputs: The hidden states or logits [rows, length, …] of the step.
            step: The step.
            head_bytes: Maximum memory for logits that are computed at once.
            top: The number of most likely tokens to return for each position.
        """
        top = min(top, self._model.vocab_size)
        if len(step.targets) == 0:
            return _EmptyScores(top)
        kind = f"score-top-{top}" if top else "score"
        function = functools.partial(self._score, head_bytes, top)
        return _ScoreChunks(
            [
                (count, self._apply(kind, function, outputs, rows, positions, targets))
                for count, (rows, positions, targets) in self._chunks(step.rows, step.positions, step.targets)
            ]
        )

    def next_tokens(self, outputs: Any, step: Step, metadata: SamplingMetadata | None) -> PendingTokens:
        """Start to choose the next tokens at the positions of a step.

        Args:
            outputs: The hidden states or logits [rows, length, …] of the step.
            step: The step.
            metadata: How to choose; None takes the most likely tokens.
        """
        choice = GREEDY if metadata is None else metadata.choice
        sampling = None if choice.sampling is None else sampling_arrays(choice.sampling)
        arrays = None if choice.processing is None else processing_arrays(choice.processing, self._model.vocab_size)
        kind = "greedy" if sampling is None else "sample"
        if choice.processing is not None:
            kind = f"processed-{sampling is not None}-{choice.processing.needs_history}"
        choose = functools.partial(self._choose, min(choice.top, self._model.vocab_size))
        kind += f"-top-{choice.top}" if choice.top else ""
        columns = [step.rows, step.positions]
        if metadata is not None:
            columns += [
                *np.array([key_data(key) for key in metadata.keys], np.uint32).reshape(-1, 2).T,
                metadata.sampled,
            ]
        if len(step.rows) == 0:
            return PendingTokens([])
        chunks = []
        begin = 0
        for count, (rows, positions, *others) in self._chunks(*columns):
            keys = state = None
            if sampling is not None:
                keys = SamplingKeys(np.stack(others[:2], axis=1), others[2])  # type: ignore[arg-type]
            if metadata is not None and choice.processing is not None:
                at = slice(begin, begin + count)
                texts, sampled = metadata.texts[at], metadata.sampled[at]
                state = step_state(choice.processing, texts, sampled, self._model.vocab_size)
                state = jax.tree.map(lambda x, size=len(rows): _pad_rows(x, size), state)
            chunks.append((count, self._apply(kind, choose, outputs, rows, positions, sampling, keys, arrays, state)))
            begin += count
        return PendingTokens(chunks)

    def _chunks(self, *columns: npt.NDArray[Any]) -> Iterator[tuple[int, list[npt.NDArray[Any]]]]:
        """Split columns of equal length into zero-padded chunks of a few sizes, and yield each with its real size."""
        fitting = _GATHERED_LOGITS_BYTES * self._model.sharding.size // (4 * self._model.vocab_size)
        most = _POSITION_COUNTS[-1] if self._scores_in_blocks else max(_POSITION_COUNTS[0], fitting)
        begin = 0
        for size in chunk_sizes(len(columns[0]), tuple(count for count in _POSITION_COUNTS if count <= most), 16):
            real = min(size, len(columns[0]) - begin)
            yield real, [np.pad(column[begin : begin + real], (0, size - real)) for column in columns]
            begin += real

    def _apply(self, kind: str, function: Compiled, outputs: Any, rows: Tokens, positions: Tokens, *others: Any) -> Any:
        """Apply the head, and a function of its logits, at some positions of a step.

        A separate executable gathers the positions, so that the head is not compiled again for each step's shape.
        """
        executables, sharding = self._model.executables, self._model.sharding
        where = (sharding.replicate(rows), sharding.replicate(positions))
        key = (str(outputs.dtype), len(rows))
        gathered = executables.run(("gather", outputs.shape, *key), self._gather, outputs, *where)
        params = None if self._makes_logits else self._model.params
        return executables.run((kind, *key), function, params, gathered, *map(sharding.replicate, others))

    def _gather(self, outputs: jax.Array, rows: jax.Array, positions: jax.Array) -> jax.Array:
        """Gather positions, sharded like rows, so that each device group computes its share of the head."""
        return jnp.asarray(self._model.sharding.shard_rows(lm_head.gather(outputs, rows, positions)))

    def _logits(self, params: Any, gathered: jax.Array) -> jax.Array:
        """Return logits [q, v] of gathered hidden states or logits [q, …]."""
        if not self._makes_logits:
            assert self._model.functions.unembed is not None
            gathered = self._model.functions.unembed(params, gathered)
        return jnp.asarray(gathered[:, : self._model.vocab_size])

    def _score(self, head_bytes: int, top: int, params: Any, gathered: jax.Array, targets: jax.Array) -> Any:
        row_bytes, vocab_size, sharding = 4 * len(targets), self._model.vocab_size, self._model.sharding
        if not self._scores_in_blocks or row_bytes * vocab_size <= head_bytes:
            logits = self._logits(params, gathered)
            return sharding.gather(lm_head.score_top(logits, targets, top) if top else lm_head.score(logits, targets))
        assert self._model.functions.unembed_part is not None
        head = functools.partial(self._model.functions.unembed_part, params, gathered)
        block = max(_SMALLEST_BLOCK, head_bytes // (4 * row_bytes))
        return sharding.gather(lm_head.score_in_blocks(head, targets, vocab_size, min(block, vocab_size), top))

    def _choose(
        self,
        top: int,
        params: Any,
        gathered: jax.Array,
        sampling: SamplingArrays | None,
        keys: SamplingKeys | None,
        processing: ProcessingArrays | None,
        state: ProcessingState | None,
    ) -> Any:
        logits = own = self._logits(params, gathered)
        if processing is not None and state is not None:
            logits = process_logits(jnp, logits.astype(jnp.float32), processing, state)
        chosen = (
            sample(logits, sampling, keys)
            if sampling is not None and keys is not None
            else lm_head.greedy_tokens(logits)
        )
        return self._model.sharding.gather((*chosen, *lm_head.logprobs_of(own, chosen[0], top)))


def as_next_tokens(columns: Sequence[npt.NDArray[Any]]) -> NextTokens:
    """Return the columns tokens, finite and, if there are more, those of `birdie_zmq.engine.jax.lm_head.logprobs_of`."""
    tokens, finite, *scores = columns
    if not scores:
        return NextTokens(tokens, finite)
    logprobs, ids, top = scores
    return NextTokens(tokens, finite, logprobs, TopTokens(ids, top))


def _pad_rows(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Pad an array [q, …] with zeros to a number of rows."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))
