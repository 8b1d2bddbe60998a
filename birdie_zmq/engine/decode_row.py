"""A row that is decoded: a prompt and its answer so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from birdie_zmq.engine.backend import NextTokens
from birdie_zmq.engine.detokenizer import IncrementalDetokenizer
from birdie_zmq.engine.events import ItemFailed
from birdie_zmq.engine.generation_settings import GenerationSettings
from birdie_zmq.engine.output_checks import non_finite_logits
from birdie_zmq.engine.planning.steps import Tokens
from birdie_zmq.types import Answer


@dataclass(eq=False)
class Row:
    """A prompt and its answer so far.

    Attributes:
        index: The number of the request.
        prompt: The tokens int32[n] of the prompt, n > 0.
        key: The random key.
        answer: The generated tokens.
        max_tokens: The maximum number of generated tokens.
        is_finished: Whether the answer is complete.
        is_stopped: Whether an EOS token or a stop string has ended it, and not the maximum number of tokens.
    """

    index: int
    prompt: Tokens
    key: int
    answer: IncrementalDetokenizer
    max_tokens: int
    is_finished: bool = False
    is_stopped: bool = False

    @property
    def tokens(self) -> Tokens:
        """The tokens int32[n] of the prompt and of the answer so far."""
        return np.concatenate([self.prompt, np.array(self.answer.tokens, np.int32)])

    def add(self, chosen: NextTokens, at: int | tuple[int, int], settings: GenerationSettings) -> None:
        """Append the token at a position of a result, and note whether the answer is finished.

        Raises:
            ItemFailed: The logits were not finite.
        """
        if not chosen.finite[at]:
            raise ItemFailed(self.index, non_finite_logits())
        self.is_stopped = settings.stop.add_token(self.answer, int(chosen.tokens[at]))
        self.is_finished = self.is_stopped or len(self.answer.tokens) >= self.max_tokens

    def result(self) -> Answer:
        """Return the answer, which is finished."""
        return self.answer.text()

    def part(self) -> Answer | None:
        """Return what there is of the answer so far, if it is wanted and has grown; else None."""
        return None
