"""What of the generated tokens is the answer: behind the thoughts, before the first stop string, without special tokens."""

from __future__ import annotations

from collections.abc import Sequence

from birdie_zmq.engine.stops import cut_at_first
from birdie_zmq.engine.tokenizer import TextTokenizer
from birdie_zmq.wire.messages import GenerationSettings


class AnswerText:
    """Reads generated tokens as lm_eval's own backends do, with the one difference that thoughts hold no stop string.

    A model that thinks writes its thoughts first. They are cut off, with the white space behind them, before stop
    strings are looked for; and while the model still thinks no stop string ends it: a blank line among thoughts would
    otherwise be the end of everything. If the thoughts never end, all of the text counts as the answer.

    Args:
        tokenizer: The model's tokenizer.
        settings: The stop strings, and what ends the thoughts.
    """

    def __init__(self, tokenizer: TextTokenizer, settings: GenerationSettings) -> None:
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
