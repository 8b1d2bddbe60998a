"""From texts to token rows: which tokens a request reads, and which it is scored on.

The rules are those of lm_eval's own backends, so that numbers stay comparable, with the cases on which they stop:

- context and continuation are encoded together and cut at the length of the context's own encoding; spaces at the end
  of the context are moved to the continuation first;
- where a token spans the join, so that nothing is left of the continuation, the continuation is encoded by itself;
- an empty context is the prefix token, unless the continuation begins with that token, which is then the context;
- an empty continuation, after the context's spaces were moved to it, has nothing to score;
- a text over the model's length keeps its last ``max_length + 1`` tokens; all but the last are read.
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
    """The tokens of each ``(context, continuation)``; None where there is nothing to score.

    A continuation of more than ``max_length`` tokens comes back uncut: no window of the model holds it, and what to
    do about that is the caller's.
    """
    split = [_move_spaces(context, continuation) for context, continuation in pairs]
    # Many pairs share a context, so each text is encoded once.
    wholes = _encode_distinct(tokenizer, [context + continuation for context, continuation in split if context])
    contexts = _encode_distinct(tokenizer, [context for context, _ in split if context])
    result: list[ScoredSequence | None] = []
    alone: list[int] = []
    for number, (context, continuation) in enumerate(split):
        result.append(None)
        if not continuation:
            continue
        if context:
            context_ids = contexts[context] or [tokenizer.prefix_token_id]
            continuation_ids = wholes[context + continuation][len(contexts[context]) :]
            if continuation_ids:
                result[number] = _scored(context_ids, continuation_ids, max_length)
                continue
        alone.append(number)
    continuations = tokenizer.encode([split[number][1] for number in alone], special=False)
    for number, continuation_ids in zip(alone, continuations, strict=True):
        context = split[number][0]
        context_ids = contexts[context] if context else []
        if not context_ids:
            prefix = tokenizer.prefix_token_id
            context_ids = [prefix]
            if continuation_ids[:1] == [prefix]:
                continuation_ids = continuation_ids[1:]
        if continuation_ids:
            result[number] = _scored(context_ids, continuation_ids, max_length)
    return result


def encode_rolling(tokenizer: TokenizerAdapter, texts: Sequence[str], max_length: int) -> list[list[ScoredSequence]]:
    """The windows of each text, every token scored once and the last windows with all the context that fits."""
    result = []
    for ids in tokenizer.encode(texts):
        windows = get_rolling_token_windows(ids, tokenizer.prefix_token_id, max_length, context_len=1)
        disjoint = [make_disjoint_window(window) for window in windows]
        result.append([_scored(context, predicted, max_length) for context, predicted in disjoint])
    return result


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _encode_distinct(tokenizer: TokenizerAdapter, texts: list[str]) -> dict[str, list[int]]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, tokenizer.encode(distinct), strict=True))


def _scored(context: list[int], continuation: list[int], max_length: int) -> ScoredSequence:
    tokens = context + continuation
    keep = max(max_length, len(continuation)) + 1
    cut = max(0, len(tokens) - keep)
    return ScoredSequence(np.array(tokens[cut:], dtype=np.int32), len(continuation), cut)
