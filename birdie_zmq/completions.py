"""Completions: requests of an OpenAI-compatible client, and their answers with per-token log-probabilities.

Tokens and log-probabilities are little-endian arrays as bytes, so that a long prompt stays small on the wire and is
checked without making an object of each number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from birdie_zmq.request_params import Count, GenerationParams, RandomKey

MAX_TOP = 20
"""The maximum number of most likely tokens per position, as in OpenAI's API."""

TopCount = Annotated[int, Meta(ge=0, le=MAX_TOP)]
PackedIds = Annotated[bytes, Meta(max_length=2**24)]
"""Token ids as int32[n]."""

PackedFloats = Annotated[bytes, Meta(max_length=2**24)]
"""Log-probabilities in nats as float32[n]."""


class CompletionPrompt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True):
    """A prompt as text, or as token ids if ``text`` is None, and how it is continued.

    ``generated`` holds the tokens that earlier leases generated after the prompt. At most ``max_tokens`` are added; 0 only
    scores the prompt. ``key`` is the random key, used if tokens are sampled.
    """

    text: str | None = None
    ids: PackedIds = b""
    max_tokens: Count = 0
    generated: PackedIds = b""
    key: RandomKey = 0

    def __post_init__(self) -> None:
        if len(self.ids) % 4 or len(self.generated) % 4:
            raise ValueError("token ids are not int32")


class CompletionParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters that the prompts of a `CompletionWork` share.

    ``generation`` says how tokens are chosen and which strings end an answer; its ``max_gen_toks`` has no effect.
    ``prompt_logprobs`` and ``logprobs`` are the numbers of most likely tokens whose log-probabilities are returned at each
    position of the prompt and of the answer, with that of the token itself; None for no log-probabilities. With
    ``with_texts`` an answer has the text of each of its tokens. ``part_tokens`` is the number of tokens after which a part of an
    answer is sent; 0 sends none. With ``fits_context`` the maximum number of tokens is lowered to what the model's context
    allows; else such a prompt is refused.
    """

    generation: GenerationParams = GenerationParams()
    prompt_logprobs: TopCount | None = None
    logprobs: TopCount | None = None
    add_special_tokens: bool = True
    with_texts: bool = False
    part_tokens: Count = 0
    fits_context: bool = False


class CompletionWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="completion"):
    """Prompts to be scored, continued, or both; without either, they are only encoded and decoded."""

    prompts: list[CompletionPrompt]
    params: CompletionParams = CompletionParams()

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> CompletionWork:
        """Return the same work for some of its items."""
        return CompletionWork(prompts=[self.prompts[i] for i in indices], params=self.params)


class TokenLogprobs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Log-probabilities of n tokens: of each itself, and of the ``top`` most likely tokens in its place.

    ``logprobs`` is float32[n]; ``top_ids`` int32[n, top] and ``top_logprobs`` float32[n, top] are most likely first. They
    are those of the model's own logits, before the temperature and other changes.
    """

    top: TopCount
    logprobs: PackedFloats = b""
    top_ids: PackedIds = b""
    top_logprobs: PackedFloats = b""

    def __post_init__(self) -> None:
        sizes = {len(self.top_ids), len(self.top_logprobs), self.top * len(self.logprobs)}
        if len(sizes) != 1 or len(self.logprobs) % 4:
            raise ValueError("the log-probabilities of tokens have arrays of different lengths")

    def followed_by(self, other: TokenLogprobs) -> TokenLogprobs:
        """Return these log-probabilities, followed by those of further tokens."""
        return TokenLogprobs(
            top=self.top,
            logprobs=self.logprobs + other.logprobs,
            top_ids=self.top_ids + other.top_ids,
            top_logprobs=self.top_logprobs + other.top_logprobs,
        )


class Completion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer to a `CompletionPrompt`, or a part of it.

    ``error`` says why this prompt has no answer; all other fields are then empty. ``ids`` holds the tokens that this lease
    generated, including one that ends the answer; ``text`` is the text of all generated tokens, up to a stop string and
    without special tokens. ``finish_reason`` is None for a part of an answer. ``prompt_logprobs`` has no entry for the first
    token, which nothing predicts. ``token_ids`` and ``token_texts`` give the text of each distinct token of the answer.
    """

    error: str | None = None
    prompt_ids: PackedIds = b""
    prompt_text: str = ""
    ids: PackedIds = b""
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    prompt_logprobs: TokenLogprobs | None = None
    logprobs: TokenLogprobs | None = None
    token_ids: PackedIds = b""
    token_texts: list[str] = []

    def __post_init__(self) -> None:
        for name, ids in (("prompt_ids", self.prompt_ids), ("ids", self.ids), ("token_ids", self.token_ids)):
            if len(ids) % 4:
                raise ValueError(f"{name} are not int32")
        if len(self.token_ids) != 4 * len(self.token_texts):
            raise ValueError("the texts of tokens are fewer or more than the tokens")
        for logprobs, count in ((self.prompt_logprobs, len(self.prompt_ids) - 4), (self.logprobs, len(self.ids))):
            if logprobs is not None and len(logprobs.logprobs) != max(0, count):
                raise ValueError("the log-probabilities are fewer or more than the tokens")

    def followed_by(self, other: Completion) -> Completion:
        """Return the answer to a prompt that a later lease has continued after the tokens of this one."""
        if other.error is not None:
            return other
        logprobs = other.logprobs
        if self.logprobs is not None and logprobs is not None:
            logprobs = self.logprobs.followed_by(logprobs)
        sizes = range(0, len(other.token_ids), 4)
        known = {self.token_ids[at : at + 4] for at in range(0, len(self.token_ids), 4)}
        new = [at for at in sizes if other.token_ids[at : at + 4] not in known]
        return Completion(
            prompt_ids=other.prompt_ids,
            prompt_text=other.prompt_text,
            ids=self.ids + other.ids,
            text=other.text,
            finish_reason=other.finish_reason,
            prompt_logprobs=other.prompt_logprobs,
            logprobs=logprobs,
            token_ids=self.token_ids + b"".join(other.token_ids[at : at + 4] for at in new),
            token_texts=[*self.token_texts, *(other.token_texts[at // 4] for at in new)],
        )

    @property
    def size_bytes(self) -> int:
        """About the number of bytes that the answer takes in a message."""
        scores = [each for each in (self.prompt_logprobs, self.logprobs) if each is not None]
        arrays = sum((2 + 2 * each.top) * len(each.logprobs) for each in scores)
        texts = 4 * (len(self.prompt_text) + len(self.text) + sum(map(len, self.token_texts)))
        texts += 16 * len(self.token_texts)  # a receiver also limits the number of texts in a message
        return 256 + arrays + texts + len(self.prompt_ids) + len(self.ids) + len(self.token_ids)
