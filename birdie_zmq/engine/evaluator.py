"""The evaluator of a loaded model, which encodes requests, plans and runs their steps, and reports each answer.

Everything here is the same for every framework; the `Backend` does the arithmetic. Every step has one of the
bucket shapes, so the number of compilations is bounded beforehand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np

from birdie_zmq.engine.backend import Backend, TokenChoice
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.detokenizer import AnswerExtractor
from birdie_zmq.engine.generation import Row, StopConditions, decode_with_cache, decode_without_cache
from birdie_zmq.engine.generation_settings import generation_settings
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets, Shape
from birdie_zmq.engine.planning.steps import ScoredSequence, Step, Tokens
from birdie_zmq.engine.request_encoding import encode_pairs, encode_rolling
from birdie_zmq.engine.scoring import FinishedSequences, IdleClock, NonFiniteScore, score
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import (
    BirdieError,
    NonFiniteLogits,
    OutOfDeviceMemory,
    RequestError,
    TokenizerError,
    TokenOutOfVocabulary,
    UnsupportedRequest,
)
from birdie_zmq.types import (
    Answer,
    ChatWork,
    ComputeCounters,
    GenerateWork,
    Level,
    LogLikelihoodWork,
    RollingWork,
    RunStatistics,
    StepLimits,
    Work,
)

T = TypeVar("T")
R = TypeVar("R")


class Listener(Protocol):
    """Receives the answers, notices and progress of an evaluator while it computes."""

    def answered(self, indices: Sequence[int], answers: Sequence[Answer]) -> None:
        """Receive the answers of some items of the work."""
        ...

    def notice(self, level: Level, text: str) -> None:
        """Receive a message that the user should see once per run."""
        ...

    def compiling(self, detail: str) -> None:
        """Note that executables are being compiled, which may take long; ``detail`` lists their shapes."""
        ...

    def running(self) -> None:
        """Note that compilation has finished."""
        ...

    def step(self) -> None:
        """Note that the model is about to be called; may raise if the work has been cancelled."""
        ...


Encoded = Sequence[ScoredSequence | None] | Sequence[Sequence[ScoredSequence]]
"""For pairs, one sequence each, or None if there is nothing to score; for whole texts, the windows of each text."""


class ItemFailed(Exception):
    """One item of the work cannot be answered; ``error`` says why."""

    def __init__(self, index: int, error: BirdieError) -> None:
        super().__init__(f"item {index}: {error}")
        self.index = index
        self.error = error


class Evaluator:
    """Computes the answers of one loaded model.

    Args:
        tokenizer: The model's tokenizer.
        backend: The model.
        max_length: The maximum length of a row, in tokens.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        tokenizer: TokenizerAdapter,
        backend: Backend,
        max_length: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokenizer = tokenizer
        self._backend = backend
        self._max_length = max_length
        self._clock = clock
        # A device that waits for a compilation is idle too, but that time is counted as compilation.
        self._idle = IdleClock(self._seconds_now)
        self._counters = Counters(shapes=set(backend.probe_shapes), possible_shapes=set(backend.probe_shapes))
        self._has_noted_recompute = False
        self._busy_since: float | None = None
        self._traced_before = backend.tracing_seconds

    @property
    def report(self) -> RunStatistics:
        """All counts since the model was loaded."""
        return self._counters.statistics(
            compile_seconds=self._backend.compile_seconds,
            idle_seconds=self._idle.seconds,
            states_evicted=self._backend.states_evicted,
        )

    @property
    def computed(self) -> ComputeCounters:
        """The counts to report while work is in progress; may be read in another thread."""
        counters, since = self._counters, self._busy_since
        tracing = self._backend.tracing_seconds - self._traced_before
        seconds = counters.seconds + (0.0 if since is None else self._seconds_now() - since)
        return ComputeCounters(
            tokens=counters.tokens_computed,
            padding=counters.tokens_padding,
            generated=counters.tokens_generated,
            executables=len(counters.shapes),
            seconds=max(0.0, seconds - tracing),
            compile_seconds=self._backend.compile_seconds + tracing,
            requested=counters.tokens_requested,
            distinct=counters.tokens_distinct,
        )

    def encode(self, work: Work) -> Encoded | None:
        """Return the token sequences of log-likelihood work; None for other work.

        May be called in another thread while this evaluator computes, so that the device does not wait for it.

        Raises:
            ItemFailed: The tokenizer failed on one of the items.
            TokenizerError: The tokenizer failed on all items together only.
        """
        match work:
            case LogLikelihoodWork(pairs=pairs):
                return self._encode_pairs(pairs)
            case RollingWork(texts=texts):
                return self._encode_rolling(texts)
        return None

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[ScoredSequence | None]:
        return _encode_items(lambda some: encode_pairs(self._tokenizer, some, self._max_length), pairs)

    def _encode_rolling(self, texts: Sequence[str]) -> list[list[ScoredSequence]]:
        return _encode_items(lambda some: encode_rolling(self._tokenizer, some, self._max_length), texts)

    def pause_idle_clock(self) -> None:
        """Stop counting idle seconds until the next step, because there is no work."""
        self._idle.pause()

    def loglikelihood(
        self,
        work: LogLikelihoodWork,
        limits: StepLimits,
        listener: Listener,
        items: Sequence[ScoredSequence | None] | None = None,
    ) -> None:
        """Score each continuation after its context.

        Args:
            work: The texts.
            limits: The limits that the user set for the rows of a step.
            listener: Receives the answers.
            items: The result of `encode` for this work, if it was called before.

        Raises:
            ItemFailed: One of the items cannot be scored; the others may have been.
        """
        if items is None:
            items = self._encode_pairs(work.pairs)
        self._check_lengths(items, listener)
        empty = [index for index, item in enumerate(items) if item is None]
        if empty:
            # The empty continuation has probability one, and greedy decoding of no tokens generates it.
            listener.answered(empty, [(0.0, True)] * len(empty))
        to_score = [(index, item) for index, item in enumerate(items) if item is not None]
        owners = [index for index, _ in to_score]
        self._counters.requests += len(items)
        mode = self._backend.pair_mode
        for numbers, loglikelihoods, greedy in self._score(
            mode, [item for _, item in to_score], owners, limits, listener
        ):
            indices = [owners[number] for number in numbers]
            listener.answered(indices, list(zip(loglikelihoods.tolist(), greedy.tolist(), strict=True)))

    def rolling(
        self,
        work: RollingWork,
        limits: StepLimits,
        listener: Listener,
        texts: Sequence[Sequence[ScoredSequence]] | None = None,
    ) -> None:
        """Score each whole text; the windows of all texts share steps. The score of an empty text is 0.

        Args:
            work: The texts.
            limits: The limits that the user set for the rows of a step.
            listener: Receives the answers.
            texts: The result of `encode` for this work, if it was called before.

        Raises:
            UnsupportedRequest: The model only scores pairs.
            ItemFailed: One of the items cannot be scored; the others may have been.
        """
        mode = self._text_mode("whole texts (loglikelihood_rolling, as for perplexity)")
        if texts is None:
            texts = self._encode_rolling(work.texts)
        windows = [window for text in texts for window in text]
        owners = [index for index, text in enumerate(texts) for _ in text]
        unfinished = [len(text) for text in texts]
        totals = np.zeros(len(texts))
        empty = [index for index, text in enumerate(texts) if not text]
        if empty:
            listener.answered(empty, [0.0] * len(empty))
        self._counters.requests += len(texts)
        for numbers, loglikelihoods, _ in self._score(mode, windows, owners, limits, listener):
            for number, loglikelihood in zip(numbers, loglikelihoods, strict=True):
                totals[owners[number]] += loglikelihood
                unfinished[owners[number]] -= 1
            done = sorted({owners[number] for number in numbers if unfinished[owners[number]] == 0})
            if done:
                listener.answered(done, totals[done].tolist())

    def generate(self, work: GenerateWork, limits: StepLimits, listener: Listener) -> None:
        """Generate a continuation of each prompt, until that continuation ends.

        Args:
            work: The prompts and the generation parameters.
            limits: The limits that the user set for the rows of a step.
            listener: Receives the answers.

        Raises:
            UnsupportedRequest: The model only scores pairs.
            RequestError: The generation parameters name a token that the model does not have.
            ItemFailed: One of the prompts cannot be continued; others may have been.
            OutOfDeviceMemory: The state of one prompt does not fit into device memory.
        """
        mode = self._text_mode("continuations of prompts (generate_until)")
        settings = generation_settings(work.settings, self._tokenizer, self._backend.vocab_size)
        for level, text in settings.notices:
            listener.notice(level, text)
        rows = self._prompts(work, listener)
        stop = StopConditions(settings.end_token_ids, work.settings.max_gen_toks, settings.kept_token_ids)
        backend, choice = self._backend, TokenChoice(settings.sampling, settings.processing)

        def on_call(shapes: Sequence[Shape]) -> AbstractContextManager[None]:
            return self._report_compilation(shapes, listener)

        def fewer(error: OutOfDeviceMemory, count: int) -> None:
            listener.notice("warning", f"{error}; at most {count} prompts are decoded together from now on")

        self._counters.requests += len(rows)
        if mode.decodes_with_cache:
            finished = decode_with_cache(backend, rows, stop, choice, limits, on_call, self._counters, fewer)
        else:
            self._note_recompute(listener)
            buckets = self._buckets(limits, mode)
            finished = decode_without_cache(backend, mode, rows, stop, choice, buckets, on_call, self._counters)
        with self._timed():
            try:
                for row in finished:
                    listener.answered([row.index], [row.answer.text()])
            except NonFiniteScore as failure:
                raise ItemFailed(failure.number, _non_finite_logits()) from None

    def render_chat(self, work: ChatWork, listener: Listener) -> None:
        """Render conversations with the tokenizer's own ``apply_chat_template``.

        Raises:
            TokenizerError: The tokenizer has no such method, or it failed.
        """
        template_args: dict[str, Any] = json.loads(work.template_args)
        for index, conversation in enumerate(work.conversations):
            text = self._tokenizer.apply_chat_template(conversation, work.add_generation_prompt, template_args)
            listener.answered([index], [text])

    # --- Scoring ------------------------------------------------------------------------------------------------------

    def _score(
        self,
        mode: ExecutionMode,
        items: Sequence[ScoredSequence],
        owners: Sequence[int],
        limits: StepLimits,
        listener: Listener,
    ) -> Iterator[FinishedSequences]:
        """Run the steps of the items; after each step, yield the finished items, by number, and their scores."""
        for item, owner in zip(items, owners, strict=True):
            self._check_vocabulary(item.tokens, owner)
        self._counters.tokens_requested += sum(len(item.row) for item in items)
        self._counters.tokens_distinct += mode.group(items).distinct_tokens

        def smaller(error: OutOfDeviceMemory) -> None:
            listener.notice("warning", f"{error}; retrying with steps of at most {self._backend.budget.tokens} tokens")

        with self._timed():
            try:
                yield from score(
                    self._backend,
                    mode,
                    items,
                    lambda: self._buckets(limits, mode),
                    lambda step: self._count_step(step, listener),
                    self._counters,
                    self._idle,
                    smaller,
                )
            except NonFiniteScore as failure:
                raise ItemFailed(owners[failure.number], _non_finite_logits()) from None

    def _check_lengths(self, items: Sequence[ScoredSequence | None], listener: Listener) -> None:
        truncated = 0
        longest = 0
        for index, item in enumerate(items):
            if item is None:
                continue
            if item.count > self._max_length:
                raise ItemFailed(
                    index,
                    RequestError(
                        f"a continuation of {item.count} tokens is longer than the model's max_length of "
                        f"{self._max_length}; no window of the model can score it"
                    ),
                )
            if item.truncated:
                truncated += 1
                longest = max(longest, len(item.tokens) + item.truncated)
        if truncated:
            listener.notice(
                "warning",
                f"{truncated} of {len(items)} requests are longer than the model's max_length of {self._max_length} (the "
                f"longest has {longest} tokens); only the last {self._max_length + 1} tokens of each are used",
            )

    # --- Generation ---------------------------------------------------------------------------------------------------

    def _prompts(self, work: GenerateWork, listener: Listener) -> list[Row]:
        longest_prompt = self._max_length - work.settings.max_gen_toks
        if longest_prompt <= 0:
            raise ItemFailed(
                0,
                RequestError(
                    f"max_gen_toks is {work.settings.max_gen_toks}, which leaves no room for a prompt in the model's "
                    f"max_length of {self._max_length}; lower it with --gen_kwargs max_gen_toks=N"
                ),
            )
        rows = []
        longest = 0
        truncated = 0
        extractor = AnswerExtractor(self._tokenizer, work.settings)
        for index, ids in enumerate(_encode_items(self._tokenizer.encode, work.prompts)):
            if len(ids) > longest_prompt:
                truncated += 1
                longest = max(longest, len(ids))
            prompt = np.array(ids[-longest_prompt:] or [self._tokenizer.prefix_token_id], dtype=np.int32)
            self._check_vocabulary(prompt, index)
            rows.append(Row(index, prompt, work.keys[index] if work.keys else 0, extractor.begin()))
        if truncated:
            listener.notice(
                "warning",
                f"{truncated} of {len(rows)} prompts do not leave max_gen_toks={work.settings.max_gen_toks} tokens of the "
                f"model's max_length of {self._max_length} (the longest has {longest} tokens); only the last "
                f"{longest_prompt} tokens of each are used",
            )
        return rows

    def _note_recompute(self, listener: Listener) -> None:
        if not self._has_noted_recompute:
            self._has_noted_recompute = True
            listener.notice(
                "info",
                "the model has no state, so each generated token computes the whole text before it again; a "
                "birdie_zmq.Model with init_state and extend computes each token once",
            )

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _buckets(self, limits: StepLimits, mode: ExecutionMode) -> Buckets:
        backend = self._backend
        # A model's own score may compute the logits of all positions.
        vocab_size = backend.vocab_size if backend.makes_logits or mode.calls_score else 0
        buckets = Buckets(self._max_length, vocab_size, backend.budget, limits)
        self._counters.allow_shapes(mode.shapes(buckets))
        return buckets

    def _text_mode(self, requested: str) -> ExecutionMode:
        mode = self._backend.text_mode
        if mode is None:
            raise UnsupportedRequest(
                f"the model provides only score, which cannot compute {requested}: the birdie_zmq.Model that load_model "
                "returns needs logits, or hidden and unembed, or init_state, extend and unembed too"
            )
        return mode

    def _check_vocabulary(self, tokens: Tokens, index: int) -> None:
        highest = int(tokens.max())
        if 0 < self._backend.vocab_size <= highest:
            raise ItemFailed(
                index,
                TokenOutOfVocabulary(
                    f"the tokenizer returned the token {highest}, but the model has logits for {self._backend.vocab_size} "
                    "tokens only; load_model and load_tokenizer must use the same checkpoint"
                ),
            )

    def _seconds_now(self) -> float:
        """Return the time of a clock that stops during compilation."""
        return self._clock() - self._backend.compile_seconds

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the time within the context as seconds of work."""
        self._busy_since = started = self._seconds_now()
        try:
            yield
        finally:
            self._counters.seconds += self._seconds_now() - started
            self._busy_since = None
            self._counters.clear_pending()

    @contextmanager
    def _count_step(self, step: Step, listener: Listener) -> Iterator[None]:
        with self._report_compilation([step.shape], listener):
            yield
        self._counters.add_step(step.shape, step.used_tokens)

    @contextmanager
    def _report_compilation(self, shapes: Sequence[Shape], listener: Listener) -> Iterator[None]:
        """Report a compilation to the listener, if the model was not called with these shapes before."""
        new = [
            f"{rows} x {length}"
            for rows, length in dict.fromkeys(shapes)
            if (rows, length) not in self._counters.shapes
        ]
        listener.step()
        if new:
            listener.compiling(", ".join(new))
        yield
        if new:
            listener.running()


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


def _non_finite_logits() -> NonFiniteLogits:
    return NonFiniteLogits(
        "the model returned NaN or infinity where a token is scored (only minus infinity, for some tokens, is accepted: "
        "they are masked); check the weights and the dtype (float16 overflows where bfloat16 and float32 do not)"
    )
