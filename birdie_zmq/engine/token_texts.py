"""The text of single tokens, as an OpenAI-compatible client shows them beside their log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable

from birdie_zmq.engine.tokenizer import TokenizerAdapter

_PROBE = "a"


class TokenTexts:
    """The texts of tokens, each decoded once.

    A tokenizer may leave out a space at the start of a text, so a token is decoded after another one.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: TokenizerAdapter) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode([_PROBE], special=False)[0][-1:]
        self._text_before = tokenizer.decode(self._before, skip_special=False)
        self._texts: dict[int, str] = {}

    def of(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each token; an incomplete character becomes U+FFFD.

        Raises:
            TokenizerError: The tokenizer raised, or did not return a string.
        """
        return [self._texts[id] if id in self._texts else self._decode(id) for id in ids]

    def _decode(self, id: int) -> str:
        text = self._tokenizer.decode([*self._before, id], skip_special=False)
        known = text.startswith(self._text_before)
        text = text[len(self._text_before) :] if known else self._tokenizer.decode([id], skip_special=False)
        self._texts[id] = text
        return text
