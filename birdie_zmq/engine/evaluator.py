"""From work to answers: encode, plan, run the steps, give each answer as soon as it is known.

Everything here is the same for every framework; the `Backend` does the arithmetic. No shape is sent to the model that
is not among the buckets, so the number of compiles is known beforehand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from birdie_zmq.engine.backend import Backend, ExecutionMode
from birdie_zmq.engine.counters import Counters, Shape
from birdie_zmq.engine.detokenizer import AnswerExtractor
from birdie_zmq.engine.generation import Row, StopConditions, decode_with_cache, decode_without_cache
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.row_planner import distinct_pairs
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import ScoredSequence, Step, Tokens
from birdie_zmq.engine.request_encoding import encode_pairs, encode_rolling
from birdie_zmq.engine.scoring import FinishedSequences, IdleClock, NonFiniteScore, possible_shapes, score
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import (
    BirdieError,
    NonFiniteLogits,
    OutOfDeviceMemory,
    RequestError,
    TokenOutOfVocabulary,
    UnsupportedRequest,
)
from birdie_zmq.types import (
    Answers,
    ChatWork,
    ComputeCounters,
    GenerateWork,
    Level,
    LogLikelihoodWork,
    ProgressDelta,
    RollingScores,
    RollingWork,
    RunStatistics,
    Scores,
    StepLimits,
    Texts,
    Work,
)


class Listener(Protocol):
    """Who hears of answers while the work goes on."""

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        """Some items of the work have their answers."""
        ...

    def notice(self, level: Level, text: str) -> None:
        """Something that the person at the prompt should read, once in a run."""
        ...

    def compiling(self, detail: str) -> None:
        """Programs are compiled, which may take long; ``detail`` names their shapes."""
        ...

    def running(self) -> None:
        """Nothing is compiled any more."""
        ...

    def step(self) -> None:
        """The model is about to be called; may raise, where nobody waits for the work any more."""
        ...


Encoded = Sequence[ScoredSequence | None] | Sequence[Sequence[ScoredSequence]]
"""The tokens of pairs, or the windows of whole texts."""


class ItemFailed(Exception):
    """One item of the work has no answer, for a reason that has a name."""

    def __init__(self, index: int, error: BirdieError) -> None:
        super().__init__(f"item {index}: {error}")
        self.index = index
        self.error = error


class Evaluator:
    """Answers work for one loaded model.

    Args:
        tokenizer: The model's tokenizer.
        backend: The model.
        max_length: The most tokens of a row.
        clock: Gives seconds; monotonic.
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
        # A device whose program is compiled has nothing to do either, but that is counted as compiling.
        self._idle = IdleClock(self._seconds_now)
        self._tally = Counters(shapes=set(backend.trial_shapes), possible=set(backend.trial_shapes))
        self._has_advised = False
        self._busy_since: float | None = None
        self._traced_before = backend.tracing_seconds

    @property
    def report(self) -> RunStatistics:
        """What has been computed so far."""
        return self._tally.report(
            compile_seconds=self._backend.compile_seconds,
            idle_seconds=self._idle.seconds,
            states_evicted=self._backend.states_evicted,
        )

    @property
    def computed(self) -> ComputeCounters:
        """The counts that are told while the work goes on; may be asked for in another thread."""
        tally, since = self._tally, self._busy_since
        tracing = self._backend.tracing_seconds - self._traced_before
        seconds = tally.seconds + (0.0 if since is None else self._seconds_now() - since)
        return ComputeCounters(
            tokens=tally.tokens_computed,
            padding=tally.tokens_padding,
            generated=tally.tokens_generated,
            executables=len(tally.shapes),
            seconds=max(0.0, seconds - tracing),
            compile_seconds=self._backend.compile_seconds + tracing,
            requested=tally.tokens_requested,
            distinct=tally.tokens_distinct,
            planned=tally.planned,
            done=tally.done,
        )

    def advance(self, computed: ComputeCounters) -> ProgressDelta:
        """How far the work has come by computing what is new; tells of each text once that it has ended."""
        tally = self._tally
        finished_lengths, tally.finished_lengths = tuple(tally.finished_lengths), []
        return ProgressDelta(
            computed=computed,
            remaining=tally.remaining,
            active_lengths=tuple(tally.active_lengths),
            finished_lengths=finished_lengths,
            decode_rows=tally.decode_rows,
            decode_step_cost=tally.decode_step_cost,
            decode_row_cost=tally.decode_row_cost,
            pending_compiles=tally.pending_compiles,
        )

    def encode(self, work: Work) -> Encoded | None:
        """The tokens of work that is to be scored; None for other work.

        May be called in another thread while this evaluator computes, so that the device need not wait for it.

        Raises:
            TokenizerError: The tokenizer failed.
        """
        match work:
            case LogLikelihoodWork(pairs=pairs):
                return encode_pairs(self._tokenizer, pairs, self._max_length)
            case RollingWork(texts=texts):
                return encode_rolling(self._tokenizer, texts, self._max_length)
        return None

    def rest(self) -> None:
        """There is no work: that nothing is computed from now on is not the engine's fault."""
        self._idle.rest()

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
            limits: What the user said of the rows of a step.
            listener: Hears of the answers.
            items: What `encode` gave for this work, if it was called before.

        Raises:
            ItemFailed: One of the items cannot be scored; the others may have been.
        """
        if items is None:
            items = encode_pairs(self._tokenizer, work.pairs, self._max_length)
        self._check_lengths(items, listener)
        nothing = [index for index, item in enumerate(items) if item is None]
        if nothing:
            # The probability of saying nothing is one, and nothing is what greedy decoding gives for no steps.
            scores = Scores(loglikelihoods=np.zeros(len(nothing)), greedy=np.ones(len(nothing), dtype=np.bool_))
            listener.answered(nothing, scores)
        kept = [(index, item) for index, item in enumerate(items) if item is not None]
        owners = [index for index, _ in kept]
        self._tally.requests += len(items)
        as_pairs = self._backend.scores_pairs
        for numbers, loglikelihoods, greedy in self._score(
            [item for _, item in kept], owners, limits, listener, as_pairs=as_pairs
        ):
            indices = [owners[number] for number in numbers]
            listener.answered(indices, Scores(loglikelihoods=loglikelihoods, greedy=greedy))

    def rolling(
        self,
        work: RollingWork,
        limits: StepLimits,
        listener: Listener,
        texts: Sequence[Sequence[ScoredSequence]] | None = None,
    ) -> None:
        """Score each whole text; an empty one scores 0. The windows of all texts share steps.

        Args:
            work: The texts.
            limits: What the user said of the rows of a step.
            listener: Hears of the answers.
            texts: What `encode` gave for this work, if it was called before.

        Raises:
            UnsupportedRequest: The model only scores pairs.
            ItemFailed: One of the items cannot be scored; the others may have been.
        """
        self._check_reads("whole texts (loglikelihood_rolling, as for perplexity)")
        if texts is None:
            texts = encode_rolling(self._tokenizer, work.texts, self._max_length)
        windows = [window for text in texts for window in text]
        owners = [index for index, text in enumerate(texts) for _ in text]
        unfinished = [len(text) for text in texts]
        totals = np.zeros(len(texts))
        empty = [index for index, text in enumerate(texts) if not text]
        if empty:
            listener.answered(empty, RollingScores(loglikelihoods=np.zeros(len(empty))))
        self._tally.requests += len(texts)
        for numbers, loglikelihoods, _ in self._score(windows, owners, limits, listener):
            for number, loglikelihood in zip(numbers, loglikelihoods, strict=True):
                totals[owners[number]] += loglikelihood
                unfinished[owners[number]] -= 1
            done = sorted({owners[number] for number in numbers if unfinished[owners[number]] == 0})
            if done:
                listener.answered(done, RollingScores(loglikelihoods=totals[done]))

    def generate(self, work: GenerateWork, limits: StepLimits, listener: Listener) -> None:
        """Continue each prompt until its own end.

        Raises:
            UnsupportedRequest: The model only scores pairs.
            ItemFailed: One of the prompts cannot be continued; others may have been.
            OutOfDeviceMemory: There is no room for the state of one prompt.
        """
        self._check_reads("prompts that are to be continued (generate_until)")
        rows = self._prompts(work, listener)
        ends = StopConditions(self._tokenizer.eos_token_ids, work.settings.max_gen_toks)
        backend, sampling = self._backend, work.settings.sampling

        def called(shapes: Sequence[Shape]) -> AbstractContextManager[None]:
            return self._announced(shapes, listener)

        def fewer(error: OutOfDeviceMemory, count: int) -> None:
            listener.notice("warning", f"{error}; at most {count} prompts are continued side by side")

        self._tally.requests += len(rows)
        if backend.ability == "rows":
            self._advise(listener)
            buckets = self._buckets(limits, backend.ability)
            finished = decode_without_cache(backend, rows, ends, sampling, buckets, called, self._tally)
        else:
            finished = decode_with_cache(backend, rows, ends, sampling, limits, called, self._tally, fewer)
        with self._timed():
            try:
                for row in finished:
                    listener.answered([row.index], Texts(texts=[row.answer.text()]))
            except NonFiniteScore as failure:
                raise ItemFailed(failure.number, _not_finite()) from None

    def render_chat(self, work: ChatWork, listener: Listener) -> None:
        """Render conversations by the tokenizer's own method.

        Raises:
            TokenizerError: The tokenizer has no such method, or it failed.
        """
        template_args: dict[str, Any] = json.loads(work.template_args)
        for index, conversation in enumerate(work.conversations):
            text = self._tokenizer.apply_chat_template(conversation, work.add_generation_prompt, template_args)
            listener.answered([index], Texts(texts=[text]))

    # --- Scoring -----------------------------------------------------------------------------------------------------

    def _score(
        self,
        items: Sequence[ScoredSequence],
        owners: Sequence[int],
        limits: StepLimits,
        listener: Listener,
        *,
        as_pairs: bool = False,
    ) -> Iterator[FinishedSequences]:
        """Run the items' steps; after each, the numbers of the items that are done and their results."""
        for item, owner in zip(items, owners, strict=True):
            self._check_vocabulary(item.tokens, owner)
        self._tally.tokens_requested += sum(len(item.row) for item in items)
        self._tally.tokens_distinct += (
            sum(len(items[numbers[0]].row) for numbers in distinct_pairs(items))
            if as_pairs
            else PrefixTree(items).distinct_tokens()
        )

        def smaller(error: OutOfDeviceMemory) -> None:
            listener.notice(
                "warning", f"{error}; steps are made smaller, of {self._backend.budget.tokens} tokens at most"
            )

        with self._timed():
            try:
                yield from score(
                    self._backend,
                    items,
                    lambda: self._buckets(limits, "pairs" if as_pairs else self._backend.ability),
                    lambda step: self._counted(step, listener),
                    self._tally,
                    self._idle,
                    smaller,
                    as_pairs=as_pairs,
                )
            except NonFiniteScore as failure:
                raise ItemFailed(owners[failure.number], _not_finite()) from None

    def _check_lengths(self, items: Sequence[ScoredSequence | None], listener: Listener) -> None:
        cut = 0
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
            if item.cut:
                cut += 1
                longest = max(longest, len(item.tokens) + item.cut)
        if cut:
            listener.notice(
                "warning",
                f"{cut} of {len(items)} requests are longer than the model's max_length of {self._max_length} (the "
                f"longest has {longest} tokens): of each the last {self._max_length + 1} tokens were kept",
            )

    # --- Generation --------------------------------------------------------------------------------------------------

    def _prompts(self, work: GenerateWork, listener: Listener) -> list[Row]:
        room = self._max_length - work.settings.max_gen_toks
        if room <= 0:
            raise ItemFailed(
                0,
                RequestError(
                    f"max_gen_toks is {work.settings.max_gen_toks}, which leaves no room for a prompt in the model's "
                    f"max_length of {self._max_length}; ask for fewer with --gen_kwargs max_gen_toks=N"
                ),
            )
        rows = []
        longest = 0
        cut = 0
        answer = AnswerExtractor(self._tokenizer, work.settings)
        for index, ids in enumerate(self._tokenizer.encode(work.prompts)):
            if len(ids) > room:
                cut += 1
                longest = max(longest, len(ids))
            prompt = np.array(ids[-room:] or [self._tokenizer.prefix_token_id], dtype=np.int32)
            self._check_vocabulary(prompt, index)
            rows.append(Row(index, prompt, work.keys[index] if work.keys else 0, answer.begin()))
        if cut:
            listener.notice(
                "warning",
                f"{cut} of {len(rows)} prompts do not leave max_gen_toks={work.settings.max_gen_toks} tokens of the "
                f"model's max_length of {self._max_length} (the longest has {longest} tokens): of each the last {room} "
                "tokens were kept",
            )
        return rows

    def _advise(self, listener: Listener) -> None:
        if not self._has_advised:
            self._has_advised = True
            listener.notice(
                "info",
                "the model gives no state, so every token that it generates reads the whole text before it again; with "
                "init_state and extend of birdie_zmq.Model it would read each token once",
            )

    # --- Steps -------------------------------------------------------------------------------------------------------

    def _buckets(self, limits: StepLimits, ability: ExecutionMode) -> Buckets:
        backend = self._backend
        # A model's own score may well make logits of all its positions.
        vocab_size = backend.vocab_size if backend.makes_logits or ability == "pairs" else 0
        buckets = Buckets(self._max_length, vocab_size, backend.budget, limits)
        self._tally.possible |= possible_shapes(ability, buckets)
        return buckets

    def _check_reads(self, what: str) -> None:
        if self._backend.ability == "pairs":
            raise UnsupportedRequest(
                f"the model gives score alone, which cannot read {what}: that needs logits, or hidden and unembed, or "
                "init_state, extend and unembed in the birdie_zmq.Model that load_model returns"
            )

    def _check_vocabulary(self, tokens: Tokens, index: int) -> None:
        highest = int(tokens.max())
        if 0 < self._backend.vocab_size <= highest:
            raise ItemFailed(
                index,
                TokenOutOfVocabulary(
                    f"the tokenizer made the token {highest}, but the model has logits for {self._backend.vocab_size} "
                    "tokens only; load_model and load_tokenizer do not fit together"
                ),
            )

    def _seconds_now(self) -> float:
        """A clock that stands still while programs are compiled."""
        return self._clock() - self._backend.compile_seconds

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count what is done here as the seconds of work."""
        self._busy_since = began = self._seconds_now()
        try:
            yield
        finally:
            self._tally.seconds += self._seconds_now() - began
            self._busy_since = None
            self._tally.over()

    @contextmanager
    def _counted(self, step: Step, listener: Listener) -> Iterator[None]:
        with self._announced([step.shape], listener):
            yield
        self._tally.step(step.shape, step.used_tokens)

    @contextmanager
    def _announced(self, shapes: Sequence[Shape], listener: Listener) -> Iterator[None]:
        """Say that programs are compiled, if these shapes were never called before."""
        new = [
            f"{rows} x {length}" for rows, length in dict.fromkeys(shapes) if (rows, length) not in self._tally.shapes
        ]
        listener.step()
        if new:
            listener.compiling(", ".join(new))
        yield
        if new:
            listener.running()


def _not_finite() -> NonFiniteLogits:
    return NonFiniteLogits(
        "the model returned NaN or infinity where a token is scored; check the weights and the dtype (float16 "
        "overflows where bfloat16 and float32 do not)"
    )
