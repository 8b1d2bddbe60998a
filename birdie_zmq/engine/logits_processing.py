"""Changes of logits before a token is chosen: biases, forbidden tokens and penalties, in NumPy and in JAX alike.

The order and the formulae are those of ``transformers/generation/logits_process.py`` (5.24), whose processors
``_get_logits_processor`` of ``transformers/generation/utils.py`` puts together: ``SequenceBiasLogitsProcessor``,
``RepetitionPenaltyLogitsProcessor``, then the processors that set logits to minus infinity, and temperature and filters
last. Presence and frequency penalties are those of vLLM (``vllm/v1/sample/ops/penalties.py``), which applies them after the
repetition penalty, and ``logit_bias`` before it.

Shape letters: q positions, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.planning.steps import Tokens

IN_PROMPT = 1 << 30
"""Marks a token of the prompt in a token history; the bits below count how often the token was generated."""


@dataclass(frozen=True)
class LogitsProcessing:
    """How logits are changed before a token is chosen; the same for all rows of a batch.

    Attributes:
        bias: Tokens, each with a number that is added to its logit.
        forbidden: Tokens that are never chosen.
        forbidden_first: Tokens that are not chosen as the first one.
        end_tokens: Tokens that are not chosen before the minimum length.
        min_new_tokens: The minimum number of generated tokens.
        min_length: The minimum length of a prompt and its answer, in tokens.
        repetition_penalty: Divides positive logits of tokens of the prompt or the answer, and multiplies negative ones.
        presence_penalty: Subtracted from the logit of a token that was generated before.
        frequency_penalty: Subtracted from a token's logit for each time that it was generated before.
    """

    bias: tuple[tuple[int, float], ...] = ()
    forbidden: tuple[int, ...] = ()
    forbidden_first: tuple[int, ...] = ()
    end_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    min_length: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def needs_history(self) -> bool:
        """Whether a penalty depends on the tokens so far."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    def minimum(self, prompt_lengths: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Return the minimum numbers int32[q] of generated tokens after prompts of these lengths."""
        rest = self.min_length - np.asarray(prompt_lengths, np.int64)
        return np.maximum(rest, self.min_new_tokens).clip(0, 2**31 - 1).astype(np.int32)


class ProcessingArrays(NamedTuple):
    """A `LogitsProcessing` as arrays, so that one executable serves all values.

    ``bias`` float32[3, v] is added to the logits always, at the first token, and before the minimum length; it is minus
    infinity for a forbidden token. The penalties are float32 scalars.
    """

    bias: Any
    repetition_penalty: Any
    presence_penalty: Any
    frequency_penalty: Any


class ProcessingState(NamedTuple):
    """What the processing of some positions depends on.

    ``generated`` int32[q] counts the tokens generated before, ``minimum`` int32[q] is the minimum number of generated
    tokens, and ``history`` int32[q, v] is a `token_history` for each position, None if no penalty needs it.
    """

    generated: Any
    minimum: Any
    history: Any


def processing_arrays(processing: LogitsProcessing, vocab_size: int) -> ProcessingArrays:
    """Return a processing as NumPy arrays for a vocabulary."""
    bias = np.zeros((3, vocab_size), np.float32)
    for token, value in processing.bias:
        bias[0, token] += value
    for row, forbidden in enumerate((processing.forbidden, processing.forbidden_first, processing.end_tokens)):
        bias[row, list(forbidden)] = -np.inf
    penalties = (processing.repetition_penalty, processing.presence_penalty, processing.frequency_penalty)
    return ProcessingArrays(bias, *map(np.float32, penalties))


def token_history(prompt: Tokens, generated: Tokens, vocab_size: int) -> npt.NDArray[np.int32]:
    """Return int32[v]: how often each token was generated, plus `IN_PROMPT` for the tokens of the prompt."""
    history: npt.NDArray[np.int32] = np.bincount(generated, minlength=vocab_size).astype(np.int32)
    history[prompt] += IN_PROMPT  # an index that occurs twice is increased once
    return history


def step_state(
    processing: LogitsProcessing, texts: Sequence[Tokens], generated: Tokens, vocab_size: int
) -> ProcessingState:
    """Return the state of some positions.

    Args:
        processing: The processing.
        texts: For each of n positions, the tokens of the prompt and of its answer so far.
        generated: The numbers int32[n] of generated tokens among them.
        vocab_size: The number of tokens.
    """
    begins = np.array([len(text) for text in texts], np.int32) - generated
    history = None
    if processing.needs_history:
        history = np.stack(
            [
                token_history(text[:begin], text[begin:], vocab_size)
                for text, begin in zip(texts, begins.tolist(), strict=True)
            ]
        )
    return ProcessingState(generated, processing.minimum(begins), history)


def process_logits(xp: Any, logits: Any, arrays: ProcessingArrays, state: ProcessingState) -> Any:
    """Return changed logits float32[q, v].

    Args:
        xp: The module of the arrays: ``numpy`` or ``jax.numpy``.
        logits: float32[q, v]; those of NaN or infinity are not repaired.
        arrays: The processing.
        state: The state of the positions.
    """
    # Minus infinity stays minus infinity under a positive factor and a finite difference, so biases may come first.
    logits = logits + arrays.bias[0]
    logits = xp.where((state.generated == 0)[:, None], logits + arrays.bias[1], logits)
    logits = xp.where((state.generated < state.minimum)[:, None], logits + arrays.bias[2], logits)
    if state.history is None:
        return logits
    factor = arrays.repetition_penalty
    logits = xp.where(state.history > 0, xp.where(logits < 0, logits * factor, logits / factor), logits)
    counts = (state.history & (IN_PROMPT - 1)).astype(xp.float32)
    return logits - arrays.frequency_penalty * counts - arrays.presence_penalty * (counts > 0)
