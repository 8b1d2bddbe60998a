"""The text of an answer while it grows: only what later tokens cannot change is shown."""

from __future__ import annotations

from collections.abc import Sequence

from birdie_zmq.engine.detokenizer import INCOMPLETE_CHARACTER, MAX_CHARACTER_TOKENS
from birdie_zmq.engine.tokenizer import TokenizerAdapter


class StreamedText:
    """Decodes an answer token by token.

    The end of the text is held back while it may be the start of a stop string, or is an incomplete character.

    Args:
        tokenizer: The model's tokenizer.
        until: The stop strings.
    """

    def __init__(self, tokenizer: TokenizerAdapter, until: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in until if stop]
        self._text = ""
        # As in `IncrementalDetokenizer`: tokens from the first offset on are context, those from the second on are new.
        self._prefix_offset = self._read_offset = 0

    def extend(self, tokens: Sequence[int]) -> str:
        """Return the text that is certain after the answer has grown to these tokens."""
        if len(tokens) > self._read_offset:
            decode = self._tokenizer.decode
            whole = decode(tokens[self._prefix_offset :])
            known = decode(tokens[self._prefix_offset : self._read_offset])
            is_incomplete = whole.endswith(INCOMPLETE_CHARACTER)
            if not is_incomplete or len(tokens) - self._read_offset >= MAX_CHARACTER_TOKENS:
                self._prefix_offset, self._read_offset = self._read_offset, len(tokens)
                self._text += whole[len(known) :]
        return self._text[: len(self._text) - self._held_back()]

    def _held_back(self) -> int:
        """Return how many characters at the end may be the start of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
