"""The encoding of requests as token sequences: which tokens the model computes, and which of them are scored.

The rules are those of lm_eval's own backends, so that numbers stay comparable. They also cover cases in which those
backends fail:

- Context and continuation are encoded together and split at the length of the context's own encoding. Spaces at the end
  of the context are moved to the continuation first.
- If a token spans the boundary, so that no token is left for the continuation, the continuation is encoded separately.
- An empty context is replaced by the prefix token, unless the continuation begins with that token, which is then the
  context.
- A continuation that is still empty after the context's spaces were moved to it has nothing to score.
- A text over the model's length keeps its last ``max_length + 1`` tokens. All but the last are the model's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from birdie_zmq.engine.planning.steps import ScoredSequence
from birdie_zmq.engine.tokenizer import TokenizerAdapter


def encode_pairs(
    tokenizer: TokenizerAdapter, pairs: Sequence[tuple[str, str]], max_length: int
) -> list[ScoredSequence | None]:
    """Encode each ``(context, continuation)``; the result is None for a pair with nothing to score.

    A continuation of more than ``max_length`` tokens is returned whole. No window of the model can score it, and the
    caller decides what to do about it.
    """
    split = [_move_spaces(context, continuation) for context, continuation in pairs]
    # Many pairs share a context, so each distinct text is encoded once.
    joined = _encode_distinct(tokenizer, [context + continuation for context, continuation in split if context])
    contexts = _encode_distinct(tokenizer, [context for context, _ in split if context])
    result: list[ScoredSequence | None] = []
    separate: list[int] = []
    for number, (context, continuation) in enumerate(split):
        result.append(None)
        if not continuation:
            continue
        if context:
            context_ids = contexts[context] or [tokenizer.prefix_token_id]
            continuation_ids = joined[context + continuation][len(contexts[context]) :]
            if continuation_ids:
                result[number] = _make_sequence(context_ids, continuation_ids, max_length)
                continue
        separate.append(number)
    continuations = tokenizer.encode([split[number][1] for number in separate], special=False)
    for number, continuation_ids in zip(separate, continuations, strict=True):
        context = split[number][0]
        context_ids = contexts[context] if context else []
        if not context_ids:
            prefix = tokenizer.prefix_token_id
            context_ids = [prefix]
            if continuation_ids[:1] == [prefix]:
                continuation_ids = continuation_ids[1:]
        if continuation_ids:
            result[number] = _make_sequence(context_ids, continuation_ids, max_length)
    return result


def encode_rolling(tokenizer: TokenizerAdapter, texts: Sequence[str], max_length: int) -> list[list[ScoredSequence]]:
    """Encode each text into windows that score every token once; the last window has all the context that fits."""
    result = []
    for ids in tokenizer.encode(texts):
        windows = get_rolling_token_windows(ids, tokenizer.prefix_token_id, max_length, context_len=1)
        disjoint = [make_disjoint_window(window) for window in windows]
        result.append([_make_sequence(context, predicted, max_length) for context, predicted in disjoint])
    return result


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _encode_distinct(tokenizer: TokenizerAdapter, texts: list[str]) -> dict[str, list[int]]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, tokenizer.encode(distinct), strict=True))


def _make_sequence(context: list[int], continuation: list[int], max_length: int) -> ScoredSequence:
    tokens = context + continuation
    keep = max(max_length, len(continuation)) + 1
    truncated = max(0, len(tokens) - keep)
    return ScoredSequence(np.array(tokens[truncated:], dtype=np.int32), len(continuation), truncated)
