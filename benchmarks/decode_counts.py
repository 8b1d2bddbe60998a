"""Counts what decode steps read: the number of steps, and the tokens in the states of their rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import GREEDY, Decoding, NextTokens, PrefillStep, SamplingMetadata, TokenChoice
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.jax.states import row_bytes
from birdie_zmq.engine.planning.steps import Step, Tokens


class CountingDecoding:
    """A decode batch that counts its steps, and the tokens in the states that they read; tokens of a shared prefix once."""

    def __init__(self, backend: CountingBackend, decoding: Decoding, rows: int, shared: int) -> None:
        self._backend = backend
        self._decoding = decoding
        self._lengths = np.zeros(rows, np.int64)
        self._shared = shared

    def prefill(
        self,
        step: Step,
        metadata: SamplingMetadata | None = None,
        following: PrefillStep | None = None,
        kept: int = 0,
    ) -> NextTokens:
        """Compute the next step of the plan."""
        return self._decoding.prefill(step, metadata, following, kept)

    def put(self, row: int, position: int, text: Tokens, key: int = 0, sampled: int = 0) -> None:
        """Let a row continue a text of the last prefill step."""
        self._lengths[row] = len(text) - 1 - self._shared
        self._decoding.put(row, position, text, key, sampled)

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """Decode the next tokens of each active row."""
        chosen = self._decoding.decode(active)
        for _ in range(chosen.tokens.shape[1]):
            self._backend.decode_steps += 1
            self._backend.tokens_read += self._shared + int(self._lengths[active].sum())
            self._lengths[active] += 1
        return chosen

    def narrow(self, rows: Sequence[int]) -> None:
        """Keep only some rows."""
        self._lengths = self._lengths[np.asarray(rows)]
        self._decoding.narrow(rows)


class CountingBackend(JaxBackend):
    """A backend that counts the steps of its decode batches.

    Attributes:
        decode_steps: The number of decode steps.
        tokens_read: The sum over decode steps of the tokens in the states of active rows.
    """

    decode_steps = 0
    tokens_read = 0

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY, shared: bytes = b"") -> Decoding:
        """Create a decode batch that is counted."""
        return CountingDecoding(self, super().decoding(rows, capacity, choice, shared), rows, len(shared) // 4)

    def token_bytes(self) -> float:
        """Return the bytes of one token in a state."""
        return row_bytes(self._model, 1024) / 1024
