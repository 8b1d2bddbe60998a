"""Completions: prompts are scored position by position, continued, or both.

A prompt that needs scores, or one most likely token, takes one forward pass: the position of its last token gives the next
token. Other prompts are decoded. Log-probabilities are those of the model's own logits in float32, before temperature,
filters and penalties, as vLLM returns them by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from birdie_zmq.completions import Completion, CompletionPrompt, CompletionWork
from birdie_zmq.engine.completion_row import CompletionRow, first_of, unpack_ids
from birdie_zmq.engine.decode_batch import answered
from birdie_zmq.engine.detokenizer import AnswerExtractor
from birdie_zmq.engine.events import Answered, Event
from birdie_zmq.engine.generation import decode
from birdie_zmq.engine.generation_settings import GenerationSettings, generation_settings
from birdie_zmq.engine.logprobs import top_count
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.steps import PAD, ScoredSequence, Tokens
from birdie_zmq.engine.position_scores import PositionScores, SequenceScores
from birdie_zmq.engine.scoring import run_scoring
from birdie_zmq.engine.streamed_text import StreamedText
from birdie_zmq.engine.token_texts import TokenTexts
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import RequestError, TokenizerError
from birdie_zmq.types import StepLimits


@dataclass(frozen=True)
class CompletionEngine:
    """What completions are computed with.

    Attributes:
        runner: The model.
        mode: How the model computes whole texts.
        tokenizer: Its tokenizer.
        texts: The texts of single tokens.
    """

    runner: ModelRunner
    mode: ExecutionMode
    tokenizer: TokenizerAdapter
    texts: TokenTexts


def complete(engine: CompletionEngine, work: CompletionWork, limits: StepLimits) -> Iterator[Event]:
    """Answer completion prompts; one that cannot be answered gets an answer that says why.

    Args:
        engine: The model and its tokenizer.
        work: The prompts and their parameters.
        limits: The limits that the user set for the rows of a step.

    Raises:
        ItemFailed: A prompt has logits that are not finite; others may have been answered.
        OutOfDeviceMemory: Not even the smallest steps fit into device memory.
    """
    runner, params = engine.runner, work.params
    runner.counters.requests += len(work)
    # Each row has a maximum number of tokens of its own.
    generation = msgspec.structs.replace(params.generation, max_gen_toks=2 * runner.max_length + 1)
    try:
        settings = generation_settings(generation, engine.tokenizer, runner.backend.vocab_size)
    except RequestError as error:
        yield Answered(range(len(work)), [Completion(error=error.message)] * len(work))
        return
    rows: list[CompletionRow] = []
    extractor = AnswerExtractor(engine.tokenizer, generation)
    for index, tokens in enumerate(encode_completion_prompts(engine, work)):
        if isinstance(tokens, str):
            yield Answered([index], [Completion(error=tokens)])
        else:
            rows.append(_row(engine, work, extractor, index, tokens))
    if any(row.new_tokens for row in rows):
        yield from settings.notices
    if params.logprobs is not None:
        settings = replace(settings, choice=replace(settings.choice, top=top_count(params.logprobs)))
    runner.counters.tokens_requested += sum(len(row.tokens) for row in rows)
    yield from _score(engine, rows, settings, limits)
    unfinished = [row for row in rows if not row.is_finished]
    if unfinished:
        mode = runner.backend.generation_mode
        assert mode is not None
        yield from decode(runner, mode, unfinished, settings, limits)


def encode_completion_prompts(engine: CompletionEngine, work: CompletionWork) -> list[Tokens | str]:
    """Return the tokens int32[n] of each prompt, n > 0, or why it has none.

    The prefix token replaces an empty prompt.
    """
    texts = [item.text for item in work.prompts if item.text is not None]
    encoded = iter(_encode(engine.tokenizer, texts, special=work.params.add_special_tokens))
    found: list[Tokens | str] = []
    for item in work.prompts:
        tokens = unpack_ids(item.ids) if item.text is None else next(encoded)
        if not isinstance(tokens, str):
            if not len(tokens):
                tokens = np.array([engine.tokenizer.prefix_token_id], np.int32)
            wanted = 1 if work.params.fits_context else item.max_tokens
            tokens = _refusal(engine.runner, item, tokens, min(wanted, item.max_tokens)) or tokens
        found.append(tokens)
    return found


def _encode(tokenizer: TokenizerAdapter, texts: Sequence[str], *, special: bool) -> list[Tokens | str]:
    """Return the tokens int32[n] of each text, or why the tokenizer cannot encode it."""
    try:
        return [np.array(ids, np.int32) for ids in tokenizer.encode(texts, special=special)]
    except TokenizerError as error:
        if len(texts) == 1:
            return [error.message]
        return [_encode(tokenizer, [text], special=special)[0] for text in texts]


def _refusal(runner: ModelRunner, item: CompletionPrompt, tokens: Tokens, max_tokens: int) -> str | None:
    """Return why the model cannot compute a prompt and some tokens after it; None if it can."""
    vocab_size, generated = runner.backend.vocab_size, len(item.generated) // 4
    text = np.concatenate([tokens, unpack_ids(item.generated)])
    outside = text[(text < 0) | (text >= vocab_size)] if vocab_size else text[text < 0]
    if len(outside):
        return f"the prompt has the token {int(outside[0])}, but the model has {vocab_size:,} tokens only"
    # The last token is never computed, so one token may follow a prompt of the maximum length.
    needed = len(text) + max(0, max_tokens - 1)
    if needed <= runner.max_length:
        return None
    asked = f" and max_tokens={item.max_tokens + generated}" if item.max_tokens else ""
    return (
        f"the model's maximum context length is {runner.max_length:,} tokens, but the prompt has {len(tokens):,} "
        f"tokens{asked}; shorten the prompt{' or lower max_tokens' if item.max_tokens > 1 else ''}"
    )


def _row(
    engine: CompletionEngine, work: CompletionWork, extractor: AnswerExtractor, index: int, tokens: Tokens
) -> CompletionRow:
    item, params = work.prompts[index], work.params
    left = engine.runner.max_length + 1 - len(tokens) - len(item.generated) // 4
    max_tokens = min(item.max_tokens, left) if params.fits_context else item.max_tokens
    answer = extractor.begin()
    for token in unpack_ids(item.generated).tolist():
        answer.add(token)
    decodes_prompt = params.with_texts and item.text is None
    return CompletionRow(
        index,
        tokens,
        item.key,
        answer,
        len(answer.tokens) + max_tokens,
        is_finished=max_tokens == 0,
        params=params,
        texts=engine.texts,
        prompt_text=engine.tokenizer.decode(tokens.tolist(), skip_special=False) if decodes_prompt else "",
        streamed=StreamedText(engine.tokenizer, params.generation.until) if params.part_tokens else None,
    )


def _score(
    engine: CompletionEngine, rows: Sequence[CompletionRow], settings: GenerationSettings, limits: StepLimits
) -> Iterator[Event]:
    """Score what one forward pass of each row gives, and yield the answers that are complete then."""
    is_greedy = settings.choice.sampling is None and settings.choice.processing is None
    scored: list[tuple[CompletionRow, ScoredSequence]] = []
    unscored: list[CompletionRow] = []
    for row in rows:
        sequence = _sequence(row, with_next=is_greedy and row.new_tokens == 1)
        if sequence is not None:
            scored.append((row, sequence))
        else:
            unscored.append(row)
    yield from answered([row for row in unscored if row.is_finished])
    if not scored:
        return
    params = rows[0].params
    top = top_count(max(1, params.prompt_logprobs or 0, params.logprobs or 0))
    scores = PositionScores([sequence for _, sequence in scored], [row.index for row, _ in scored], top)
    for event in run_scoring(engine.runner, engine.mode, scores, limits):
        yield event
        yield from _finish(scored, scores.take_complete(), settings)
    yield from _finish(scored, scores.take_complete(), settings)


def _sequence(row: CompletionRow, *, with_next: bool) -> ScoredSequence | None:
    """Return what is scored of a row, in one forward pass; None if that is nothing.

    Args:
        row: The row.
        with_next: Whether the pass also gives the next token. Its place in the sequence may hold any token.
    """
    text = row.tokens
    count = len(text) - 1 if row.params.prompt_logprobs is not None else 0
    if with_next:
        text, count = np.append(text, np.int32(PAD)), count + 1
    return ScoredSequence(text, count) if count else None


def _finish(
    scored: Sequence[tuple[CompletionRow, ScoredSequence]],
    complete: Sequence[tuple[int, SequenceScores]],
    settings: GenerationSettings,
) -> Iterator[Event]:
    """Give rows their scores, and yield the answers that are complete with them."""
    rows = []
    for number, scores in complete:
        row, sequence = scored[number]
        if row.params.prompt_logprobs is not None:
            row.prompt_scores = scores.cut(0, len(row.prompt) - 1)
        if len(sequence.tokens) > len(row.tokens):
            row.add(first_of(scores.cut(len(scores) - 1, len(scores))), 0, settings)
        if row.is_finished:
            rows.append(row)
    yield from answered(rows)
