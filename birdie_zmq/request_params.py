"""The bounded numbers of all records, and the parameters of a generation, which requests of every kind share."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, lt=2**53)]
PositiveCount = Annotated[int, Meta(gt=0, lt=2**53)]
Seconds = Annotated[float, Meta(gt=0, lt=1e9)]
Duration = Annotated[float, Meta(ge=0, lt=1e9)]
Name = Annotated[str, Meta(max_length=4096)]
RandomKey = Annotated[int, Meta(ge=0, lt=2**62)]
Temperature = Annotated[float, Meta(gt=0, lt=1e9)]
PositiveFraction = Annotated[float, Meta(gt=0, le=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
TokenIds = Annotated[tuple[TokenId, ...], Meta(max_length=65_536)]
LogitBias = Annotated[float, Meta(ge=-1e9, le=1e9)]
TokenBias = Annotated[tuple[tuple[TokenId, LogitBias], ...], Meta(max_length=65_536)]
Penalty = Annotated[float, Meta(gt=0, le=1e9)]


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling parameters with the names and meanings of transformers.

    Logits are divided by ``temperature``, then filtered. ``top_k`` keeps the k most likely tokens (0 keeps all).
    ``top_p`` keeps the smallest set of most likely tokens whose total probability is at least ``top_p``. ``min_p`` keeps
    the tokens whose probability is at least ``min_p`` times that of the most likely token. Each filter applies to the
    tokens that the one before it kept.
    """

    temperature: Temperature = 1.0
    top_k: Count = 0
    top_p: PositiveFraction = 1.0
    min_p: Fraction = 0.0


class LogitsParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters that change which tokens may be chosen and which end an answer; the defaults change nothing.

    The names and meanings are those of transformers' ``GenerationConfig``. ``stop_token_ids``, ``ignore_eos``,
    ``logit_bias``, ``presence_penalty`` and ``frequency_penalty`` are those of vLLM's ``SamplingParams``. A bias and a bad
    word concern single tokens. ``eos_token_id`` replaces the checkpoint's EOS tokens; None keeps them.
    """

    min_new_tokens: Count = 0
    min_length: Count = 0
    eos_token_id: TokenIds | None = None
    stop_token_ids: TokenIds = ()
    ignore_eos: bool = False
    suppress_tokens: TokenIds = ()
    begin_suppress_tokens: TokenIds = ()
    bad_words_ids: TokenIds = ()
    sequence_bias: TokenBias = ()
    logit_bias: TokenBias = ()
    repetition_penalty: Penalty = 1.0
    presence_penalty: LogitBias = 0.0
    frequency_penalty: LogitBias = 0.0


class GenerationParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generation parameters of a prompt.

    ``until`` holds the stop strings; the generated text is cut before the first of them. ``think_end_token``, as text or
    as a token id, ends the model's reasoning: the text before it is not part of the answer, and stop strings are ignored
    in it. Without ``sampling``, decoding is greedy. ``logits`` is None if it would change nothing. ``given`` names the
    options that the request sets: the checkpoint's ``generation_config.json`` applies to the others.
    """

    until: tuple[str, ...] = ()
    max_gen_toks: PositiveCount = 256
    think_end_token: str | Count | None = None
    sampling: SamplingParams | None = None
    logits: LogitsParams | None = None
    given: Annotated[tuple[Name, ...], Meta(max_length=256)] = ()

    def key_content(self) -> dict[str, Any]:
        """Return the parameters as plain values, for the keys of journals and of random numbers.

        ``logits`` and ``given`` are left out if they are empty: keys are then those of versions without these fields.
        """
        content: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in content.items() if value or name not in ("logits", "given")}
