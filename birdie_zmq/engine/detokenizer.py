"""The answer in generated tokens: where it ends, and its text without reasoning, special tokens and stop strings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.types import GenerationParams


def cut_at_first(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the earliest stop string, and whether there is one; empty stop strings are ignored."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


class AnswerExtractor:
    """Extracts answers as lm_eval's own backends do, except that stop strings are ignored during reasoning.

    A reasoning model writes its reasoning ("thinking") first. It is removed, with the white space after it, before stop
    strings are searched. While the model is still reasoning no stop string ends the answer, because otherwise a blank
    line in the reasoning would end the generation. If the reasoning never ends, all of the text is the answer.

    Args:
        tokenizer: The model's tokenizer.
        settings: The stop strings, and the token or text that ends the reasoning.
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
                ids = tokenizer.encode_token(text)
                # Decoding leaves out special tokens, so a special token is searched for by its id.
                if len(ids) == 1 and not tokenizer.decode(ids):
                    self._end_token = ids[0]
                else:
                    self._end_text = text

    def begin(self) -> IncrementalDetokenizer:
        """Return an answer that has no tokens yet."""
        return IncrementalDetokenizer(self, self._tokenizer, self._until, self._end_token, self._end_text)

    def is_finished(self, generated: Sequence[int]) -> bool:
        """Return whether the answer contains a stop string."""
        if self._end_token is not None and self._end_token not in generated:
            return False
        text = self._decode_answer(generated, skip_special=False)
        if self._end_text is not None:
            _, found, text = text.rpartition(self._end_text)
            if not found:
                return False
            text = text.lstrip()
        return cut_at_first(text, self._until)[1]

    def text(self, generated: Sequence[int]) -> str:
        """Return the answer, up to the first stop string.

        A stop string may itself contain special tokens, which the answer's text leaves out. It is then searched for in
        the text with special tokens, and the tokens before it are decoded. If it begins inside a token, the part of the
        token before it belongs to the answer, unless the token is special.
        """
        text = self._decode_answer(generated)
        if self._end_text is not None and self._end_text in text:
            return cut_at_first(text.rpartition(self._end_text)[2].lstrip(), self._until)[0]
        text, found = cut_at_first(text, self._until)
        raw, stopped = cut_at_first(self._decode_answer(generated, skip_special=False), self._until)
        if found or not stopped:
            return text
        for count in range(len(generated), -1, -1):
            whole = self._decode_answer(generated[:count], skip_special=False)
            if len(whole) <= len(raw):
                is_special = count < len(generated) and self._is_special(generated[count])
                return self._decode_answer(generated[:count]) + ("" if is_special else raw[len(whole) :])
        return ""

    def _is_special(self, token: int) -> bool:
        """Return whether a token has a text that answers leave out."""
        return not self._tokenizer.decode([token]) and bool(self._tokenizer.decode([token], skip_special=False))

    def _decode_answer(self, generated: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text after the token that ends the reasoning, or all of it if there is no such token."""
        token = self._end_token
        if token is not None and token in generated:
            generated = generated[len(generated) - list(reversed(generated)).index(token) :]
        text = self._tokenizer.decode(generated, skip_special=skip_special)
        return text if token is None and self._end_text is None else text.lstrip()


class IncrementalDetokenizer:
    """Detokenizes an answer token by token, and detects where it ends.

    Only the new text is searched for stop strings; a match is then confirmed on the whole answer.

    Args:
        extractor: Confirms from all tokens that the answer is finished.
        tokenizer: The model's tokenizer.
        until: The stop strings.
        end_token: The token that ends the reasoning, if it is a token.
        end_text: The text that ends the reasoning, if it is a text.

    Attributes:
        tokens: The generated tokens.
    """

    def __init__(
        self,
        extractor: AnswerExtractor,
        tokenizer: TokenizerAdapter,
        until: Sequence[str],
        end_token: int | None,
        end_text: str | None,
    ) -> None:
        self.tokens: list[int] = []
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._stops = [stop for stop in until if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._end_token = end_token
        self._end_text = end_text
        self._is_reasoning = end_token is not None or end_text is not None
        self._strips_start = self._is_reasoning
        self._text = ""
        # Tokens from the prefix offset on are decoded again, as context; those from the read offset on are new.
        self._prefix_offset = self._read_offset = 0

    def add(self, token: int) -> bool:
        """Append a token, and return whether the answer contains a stop string now."""
        self.tokens.append(token)
        if token == self._end_token:
            self._is_reasoning, self._text = False, ""
            self._prefix_offset = self._read_offset = len(self.tokens)
            return False
        if not self._stops or (self._is_reasoning and self._end_text is None):
            return False
        at = len(self._text)
        self._text += self._new_text()
        if self._end_text is not None:
            tail = self._text[max(0, at - len(self._end_text) + 1) :]
            if self._end_text in tail:
                self._is_reasoning, self._text, at = False, tail.rpartition(self._end_text)[2], 0
        if self._strips_start and self._text[:1].isspace() and not self._is_reasoning:
            self._text, at = self._text.lstrip(), 0
        if self._is_reasoning:
            return False
        tail = self._text[max(0, at - self._longest + 1) :]
        return any(stop in tail for stop in self._stops) and self._extractor.is_finished(self.tokens)

    def text(self) -> str:
        """Return the answer, up to the first stop string."""
        return self._extractor.text(self.tokens)

    def _new_text(self) -> str:
        """Return the text that the new tokens add: nothing while they are an incomplete character."""
        decode = self._tokenizer.decode
        window = self.tokens[self._prefix_offset :]
        whole = decode(window, skip_special=False)
        known = decode(window[: self._read_offset - self._prefix_offset], skip_special=False)
        if whole.endswith(INCOMPLETE_CHARACTER) and len(self.tokens) - self._read_offset < MAX_CHARACTER_TOKENS:
            return ""
        self._prefix_offset, self._read_offset = self._read_offset, len(self.tokens)
        return whole[len(known) :]


@dataclass(frozen=True)
class StopConditions:
    """Conditions, other than stop strings, that end an answer: an EOS token or the maximum number of tokens.

    Attributes:
        eos_token_ids: The tokens that end an answer.
        max_gen_toks: The maximum number of tokens of an answer.
        kept_token_ids: The EOS tokens that belong to the answer.
    """

    eos_token_ids: Collection[int]
    max_gen_toks: int
    kept_token_ids: Collection[int] = ()

    def add_token(self, answer: IncrementalDetokenizer, token: int) -> bool:
        """Append an answer's next token, unless it is an EOS token; return whether the answer is finished."""
        if token in self.eos_token_ids:
            if token in self.kept_token_ids:
                answer.add(token)
            return True
        return answer.add(token) or len(answer.tokens) >= self.max_gen_toks


INCOMPLETE_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""The text that bytes are decoded to if they are not, or not yet, a complete character."""

MAX_CHARACTER_TOKENS = 8
"""After this many tokens without a complete character, their bytes are taken to be invalid."""
