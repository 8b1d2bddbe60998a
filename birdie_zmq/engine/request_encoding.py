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

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from birdie_zmq.engine.events import ItemFailed, Notice
from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import RequestError, TokenizerError, TokenOutOfVocabulary
from birdie_zmq.types import GenerateWork, LogLikelihoodWork, RollingWork

T = TypeVar("T")
R = TypeVar("R")

Encoded = list[list[ScoredSequence]]
"""The sequences of each request: at most one for a continuation, and the windows of a whole text."""


def encode_scored(tokenizer: TokenizerAdapter, work: LogLikelihoodWork | RollingWork, max_length: int) -> Encoded:
    """Encode the requests of log-likelihood work; a request with nothing to score has no sequence.

    Raises:
        ItemFailed: The tokenizer failed on one of the items.
        TokenizerError: The tokenizer failed on all items together only.
    """
    if isinstance(work, RollingWork):
        return _encode_items(lambda texts: encode_rolling(tokenizer, texts, max_length), work.texts)
    pairs = _encode_items(lambda some: encode_pairs(tokenizer, some, max_length), work.pairs)
    return [[] if sequence is None else [sequence] for sequence in pairs]


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


def encode_prompts(
    tokenizer: TokenizerAdapter, work: GenerateWork, max_length: int
) -> tuple[list[Tokens], list[Notice]]:
    """Encode prompts as tokens int32[n], n > 0; also return what the user should know about them.

    The last tokens of a prompt are kept that leave room for the longest answer. The prefix token replaces an empty prompt.

    Raises:
        ItemFailed: The tokenizer failed on one of the prompts, or the longest answer leaves no room for a prompt.
        TokenizerError: The tokenizer failed on all prompts together only.
    """
    max_gen_toks = work.settings.max_gen_toks
    longest_prompt = max_length - max_gen_toks
    if longest_prompt <= 0:
        raise ItemFailed(
            0,
            RequestError(
                f"max_gen_toks is {max_gen_toks}, which leaves no room for a prompt in the model's max_length of "
                f"{max_length}; lower it with --gen_kwargs max_gen_toks=N"
            ),
        )
    encoded = _encode_items(tokenizer.encode, work.prompts)
    prompts = [np.array(ids[-longest_prompt:] or [tokenizer.prefix_token_id], dtype=np.int32) for ids in encoded]
    truncated = [len(ids) for ids in encoded if len(ids) > longest_prompt]
    if not truncated:
        return prompts, []
    text = (
        f"{len(truncated)} of {len(prompts)} prompts do not leave max_gen_toks={max_gen_toks} tokens of the model's "
        f"max_length of {max_length} (the longest has {max(truncated)} tokens); only the last {longest_prompt} tokens of "
        "each are used"
    )
    return prompts, [Notice("warning", text)]


def check_scored(requests: Encoded, max_length: int, vocab_size: int) -> list[Notice]:
    """Check that the model can score each sequence, and return what the user should know about truncated ones.

    Args:
        requests: The sequences of each request.
        max_length: The maximum length of a row, in tokens.
        vocab_size: The number of tokens of the model; 0 if it is unknown.

    Raises:
        ItemFailed: A continuation is longer than the model's rows, or has a token that the model does not have.
    """
    sequences = [(index, sequence) for index, windows in enumerate(requests) for sequence in windows]
    for index, sequence in sequences:
        if sequence.count > max_length:
            raise ItemFailed(
                index,
                RequestError(
                    f"a continuation of {sequence.count} tokens is longer than the model's max_length of {max_length}; "
                    "no window of the model can score it"
                ),
            )
    check_vocabulary([sequence.tokens for _, sequence in sequences], [index for index, _ in sequences], vocab_size)
    truncated = [len(sequence.tokens) + sequence.truncated for _, sequence in sequences if sequence.truncated]
    if not truncated:
        return []
    text = (
        f"{len(truncated)} of {len(requests)} requests are longer than the model's max_length of {max_length} (the "
        f"longest has {max(truncated)} tokens); only the last {max_length + 1} tokens of each are used"
    )
    return [Notice("warning", text)]


def check_vocabulary(texts: Sequence[Tokens], indices: Sequence[int], vocab_size: int) -> None:
    """Check that the model has all tokens of some texts; a vocabulary of size 0 is unknown.

    Args:
        texts: The tokens of each text, int32[n], n > 0.
        indices: The index of the item of each text.
        vocab_size: The number of tokens of the model.

    Raises:
        ItemFailed: The tokenizer returned a token that the model does not have.
    """
    if not (texts and vocab_size) or int(np.concatenate(texts).max()) < vocab_size:
        return
    index, highest = next(
        (index, int(tokens.max()))
        for index, tokens in zip(indices, texts, strict=True)
        if int(tokens.max()) >= vocab_size
    )
    raise ItemFailed(
        index,
        TokenOutOfVocabulary(
            f"the tokenizer returned the token {highest}, but the model has logits for {vocab_size} tokens only; "
            "load_model and load_tokenizer must use the same checkpoint"
        ),
    )


def _encode_items(encode: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
    """Encode items together; if the tokenizer fails, find an item on which it also fails alone.

    Raises:
        ItemFailed: The tokenizer fails on this item.
        TokenizerError: The tokenizer fails on all items together only.
    """
    try:
        return encode(items)
    except TokenizerError:
        for index, item in enumerate(items):
            try:
                encode([item])
            except TokenizerError as error:
                raise ItemFailed(index, error) from error
        raise


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
