"""What of the generated tokens is the answer: behind the thoughts, before the first stop string, without special tokens."""

from __future__ import annotations

from collections.abc import Sequence

from birdie_zmq.engine.stop_criteria import cut_at_first
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.types import GenerationParams


class AnswerExtractor:
    """Reads generated tokens as lm_eval's own backends do, with the one difference that thoughts hold no stop string.

    A model that thinks writes its thoughts first. They are cut off, with the white space behind them, before stop
    strings are looked for; and while the model still thinks no stop string ends it: a blank line among thoughts would
    otherwise be the end of everything. If the thoughts never end, all of the text counts as the answer.

    Args:
        tokenizer: The model's tokenizer.
        settings: The stop strings, and what ends the thoughts.
    """

    def __init__(self, tokenizer: TokenizerAdapter, settings: GenerationParams) -> None:
        self._tokenizer = tokenizer
        self._until = settings.until
        self._end_token: int | None = None
        self._end_text: str | None = None
        match settings.think_end_token:
            case int() as token:
                self._end_token = token
            case str() as text:
                ids = tokenizer.encode([text], special=False)[0]
                # A special token is left out of decoded text, so it is looked for as a token.
                if len(ids) == 1 and not tokenizer.decode(ids):
                    self._end_token = ids[0]
                else:
                    self._end_text = text

    def begin(self) -> IncrementalDetokenizer:
        """An answer of no tokens."""
        return IncrementalDetokenizer(self, self._tokenizer, self._until, self._end_token, self._end_text)

    def is_over(self, generated: Sequence[int]) -> bool:
        """Whether a stop string stands in the answer."""
        if self._end_token is not None and self._end_token not in generated:
            return False
        text = self._read(generated, skip_special=False)
        if self._end_text is not None:
            _, found, text = text.rpartition(self._end_text)
            if not found:
                return False
            text = text.lstrip()
        return cut_at_first(text, self._until)[1]

    def text(self, generated: Sequence[int]) -> str:
        """The answer, up to the first stop string.

        A stop string may itself be written with special tokens, which the text leaves out: then it is looked for in the
        text that has them, and the tokens before it are what is decoded.
        """
        text = self._read(generated)
        if self._end_text is not None and self._end_text in text:
            return cut_at_first(text.rpartition(self._end_text)[2].lstrip(), self._until)[0]
        text, found = cut_at_first(text, self._until)
        raw, stopped = cut_at_first(self._read(generated, skip_special=False), self._until)
        if found or not stopped:
            return text
        for count in range(len(generated), -1, -1):
            whole = self._read(generated[:count], skip_special=False)
            if len(whole) <= len(raw):
                return self._read(generated[:count]) + raw[len(whole) :]
        return ""

    def _read(self, generated: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of what follows the token that ends the thoughts, or of everything if there is no such token."""
        token = self._end_token
        if token is not None and token in generated:
            generated = generated[len(generated) - list(reversed(generated)).index(token) :]
        text = self._tokenizer.decode(generated, skip_special=skip_special)
        return text if token is None and self._end_text is None else text.lstrip()


class IncrementalDetokenizer:
    """An answer as its tokens come. Its end is looked for in what is new, and then made sure of in all of it.

    Args:
        answer: Says of all tokens whether they are over.
        tokenizer: The model's tokenizer.
        until: The stop strings.
        end_token: The token that ends the thoughts of a model that thinks.
        end_text: Or the text that does.

    Attributes:
        tokens: What was generated.
    """

    def __init__(
        self,
        answer: AnswerExtractor,
        tokenizer: TokenizerAdapter,
        until: Sequence[str],
        end_token: int | None,
        end_text: str | None,
    ) -> None:
        self.tokens: list[int] = []
        self._answer = answer
        self._tokenizer = tokenizer
        self._stops = [stop for stop in until if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._end_token = end_token
        self._end_text = end_text
        self._thinks = end_token is not None or end_text is not None
        self._strips = self._thinks
        self._text = ""
        self._before = self._behind = 0  # tokens from here on are decoded again, and from here on for the first time

    def add(self, token: int) -> bool:
        """Take one more token; whether a stop string stands in the answer now."""
        self.tokens.append(token)
        if token == self._end_token:
            self._thinks, self._text = False, ""
            self._before = self._behind = len(self.tokens)
            return False
        if not self._stops or (self._thinks and self._end_text is None):
            return False
        at = len(self._text)
        self._text += self._new_text()
        if self._end_text is not None:
            tail = self._text[max(0, at - len(self._end_text) + 1) :]
            if self._end_text in tail:
                self._thinks, self._text, at = False, tail.rpartition(self._end_text)[2], 0
        if self._strips and self._text[:1].isspace() and not self._thinks:
            self._text, at = self._text.lstrip(), 0
        if self._thinks:
            return False
        tail = self._text[max(0, at - self._longest + 1) :]
        return any(stop in tail for stop in self._stops) and self._answer.is_over(self.tokens)

    def text(self) -> str:
        """The answer, up to the first stop string."""
        return self._answer.text(self.tokens)

    def _new_text(self) -> str:
        """What the newest tokens add: nothing as long as they are part of a character."""
        decode = self._tokenizer.decode
        window = self.tokens[self._before :]
        whole = decode(window, skip_special=False)
        known = decode(window[: self._behind - self._before], skip_special=False)
        if whole.endswith(_PART_OF_A_CHARACTER) and len(self.tokens) - self._behind < _MOST_PARTS:
            return ""
        self._before, self._behind = self._behind, len(self.tokens)
        return whole[len(known) :]


_PART_OF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What bytes are decoded to that are not yet, or never will be, a character."""

_MOST_PARTS = 8
"""Tokens that make no character after as many never will."""
