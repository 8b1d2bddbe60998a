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
from birdie_zmq.engine.prompt_scores import PromptScores
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
        known: Scores of prefixes of earlier prompts.
    """

    runner: ModelRunner
    mode: ExecutionMode
    tokenizer: TokenizerAdapter
    texts: TokenTexts
    known: PromptScores


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


@dataclass(frozen=True)
class _Scored:
    """What one forward pass of a row gives.

    Attributes:
        row: The row.
        known: The scores of the first tokens of its prompt, without the first one; None if the prompt is not scored.
        sequence: What is scored; its last token may be any, in the place of the next one. None if all is known.
        has_next: Whether the pass also gives the next token.
    """

    row: CompletionRow
    known: SequenceScores | None
    sequence: ScoredSequence | None
    has_next: bool

    @classmethod
    def of(cls, row: CompletionRow, known: PromptScores, top: int, *, has_next: bool) -> _Scored:
        """Return what is to be scored of a row, after what is known.

        Args:
            row: The row.
            known: Scores of prefixes of earlier prompts.
            top: The number of most likely tokens of each position.
            has_next: Whether the next token is wanted.
        """
        text, count, found = row.tokens, 0, None
        if row.params.prompt_logprobs is not None:
            found = known.longest(row.prompt, top) or SequenceScores.empty(0, top)
            count = len(text) - 1 - len(found)
        if has_next:
            text, count = np.append(text, np.int32(PAD)), count + 1
        return cls(row, found, ScoredSequence(text, count) if count else None, has_next)

    def finish(self, scores: SequenceScores | None, settings: GenerationSettings) -> None:
        """Give the row its scores, and its next token if that is among them."""
        if scores is not None and self.has_next:
            last = len(scores) - 1
            self.row.add(first_of(scores.cut(last, last + 1)), 0, settings)
            scores = scores.cut(0, last)
        if self.known is not None:
            whole = self.known if scores is None or not len(scores) else self.known.followed_by(scores)
            self.row.prompt_scores = whole.cut(0, len(self.row.prompt) - 1)


def _score(
    engine: CompletionEngine, rows: Sequence[CompletionRow], settings: GenerationSettings, limits: StepLimits
) -> Iterator[Event]:
    """Score what one forward pass of each row gives, and yield the answers that are complete then."""
    if not rows:
        return
    params = rows[0].params
    top = top_count(max(1, params.prompt_logprobs or 0, params.logprobs or 0))
    is_greedy = settings.choice.sampling is None and settings.choice.processing is None
    parts = [_Scored.of(row, engine.known, top, has_next=is_greedy and row.new_tokens == 1) for row in rows]
    for part in parts:
        if part.sequence is None:
            part.finish(None, settings)
    yield from answered([part.row for part in parts if part.sequence is None and part.row.is_finished])
    scored = [(part, part.sequence) for part in parts if part.sequence is not None]
    if not scored:
        return
    scores = PositionScores([sequence for _, sequence in scored], [part.row.index for part, _ in scored], top)
    for event in run_scoring(engine.runner, engine.mode, scores, limits):
        yield event
        yield from _finish([part for part, _ in scored], scores.take_complete(), settings)
    yield from _finish([part for part, _ in scored], scores.take_complete(), settings)
    states = tuple(engine.runner.backend.cached_prefixes())
    for part, _ in scored:
        if part.row.prompt_scores is not None:
            engine.known.learn(part.row.prompt, part.row.prompt_scores, states)


def _finish(
    parts: Sequence[_Scored], complete: Sequence[tuple[int, SequenceScores]], settings: GenerationSettings
) -> Iterator[Event]:
    """Give rows their scores, and yield the answers that are complete with them."""
    for number, scores in complete:
        parts[number].finish(scores, settings)
    yield from answered([parts[number].row for number, _ in complete if parts[number].row.is_finished])
