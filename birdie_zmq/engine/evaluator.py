"""The evaluator of a loaded model, which answers requests as a stream of events.

Everything here is the same for every framework; the `Backend` does the arithmetic. Every step has one of the
bucket shapes, so the number of compilations is bounded beforehand.
"""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Self

from birdie_zmq.completions import CompletionWork
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.completion import CompletionEngine, complete
from birdie_zmq.engine.events import Answered, Event
from birdie_zmq.engine.generation import generate
from birdie_zmq.engine.model_runner import ModelRunner, WorkClock
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.prompt_scores import PromptScores
from birdie_zmq.engine.request_encoding import Encoded, check_scored, encode_scored
from birdie_zmq.engine.scoring import score
from birdie_zmq.engine.token_texts import TokenTexts
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import UnsupportedRequest
from birdie_zmq.types import (
    ChatWork,
    ComputeCounters,
    DescribeWork,
    GenerateWork,
    LogLikelihoodWork,
    RollingWork,
    RunStatistics,
    StepLimits,
    Work,
)

EvaluatedWork = LogLikelihoodWork | RollingWork | GenerateWork | ChatWork | CompletionWork
"""The work that an evaluator answers."""


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
        tokenizer.use_clock(clock)
        self._tokenizer = tokenizer
        self._runner = ModelRunner(backend, max_length, clock)
        self._prompt_scores = PromptScores()

    def with_new_weights(self, tokenizer: TokenizerAdapter) -> Self:
        """Return an evaluator of the same backend after its weights were swapped, with new counters and another tokenizer."""
        other = copy.copy(self)
        other._tokenizer = tokenizer
        other._runner = self._runner.with_new_counters()
        other.forget_scores()
        return other

    def forget_scores(self) -> None:
        """Forget what the weights have given so far; called after they were replaced."""
        self._prompt_scores = PromptScores()

    def with_tokenizer(self, tokenizer: TokenizerAdapter) -> Self:
        """Return an evaluator of the same model, with the same counters, that encodes with another tokenizer."""
        other = copy.copy(self)
        other._tokenizer = tokenizer
        return other

    @property
    def report(self) -> RunStatistics:
        """All counts since the model was loaded."""
        return self._runner.statistics(self._tokenizer.seconds)

    @property
    def computed(self) -> ComputeCounters:
        """The counts to report while work is in progress; may be read in another thread."""
        return self._runner.computed

    @property
    def clock(self) -> WorkClock:
        """The clock of this model's work, which is told when requests arrive and when they are answered."""
        return self._runner.clock

    def encode(self, work: Work) -> Encoded | None:
        """Return the token sequences of log-likelihood work; None for other work.

        May be called in another thread while this evaluator computes, so that the device does not wait for it.

        Raises:
            ItemFailed: The tokenizer failed on one of the items.
            TokenizerError: The tokenizer failed on all items together only.
        """
        match work:
            case LogLikelihoodWork() | RollingWork():
                return encode_scored(self._tokenizer, work, self._runner.max_length)
            case GenerateWork() | ChatWork() | DescribeWork() | CompletionWork():
                return None

    def answer(
        self, work: EvaluatedWork, limits: StepLimits, encoded: Encoded | None = None
    ) -> Generator[Event, None, None]:
        """Answer all items of some work.

        The model is called while the next event is awaited. To cancel the work, close the iterator.

        Args:
            work: The work. A continuation is scored after its context, a whole text by the windows of the model's length,
                and a prompt is continued until the continuation ends.
            limits: The limits that the user set for the rows of a step.
            encoded: The result of `encode` for this work, if it was called before.

        Yields:
            The events. Each item is answered once; an empty continuation or text has the log-likelihood 0.

        Raises:
            ItemFailed: One of the items cannot be answered; others may have been.
            UnsupportedRequest: The model only scores pairs.
            RequestError: The generation parameters name a token that the model does not have.
            TokenizerError: The tokenizer failed, or it has no method to render conversations.
            ModelError: The model cannot compute.
        """
        with self.clock.work():
            match work:
                case LogLikelihoodWork():
                    yield from self._score(work, self._runner.backend.pair_mode, limits, encoded)
                case RollingWork():
                    mode = self._text_mode("whole texts (loglikelihood_rolling, as for perplexity)")
                    yield from self._score(work, mode, limits, encoded)
                case GenerateWork():
                    self._text_mode("continuations of prompts (generate_until)")
                    yield from generate(self._runner, self._tokenizer, work, limits)
                case ChatWork():
                    yield from self._render(work)
                case CompletionWork():
                    mode = self._text_mode("log-probabilities of each token, or continuations of prompts")
                    engine = CompletionEngine(self._runner, mode, self._tokenizer, self._texts, self._prompt_scores)
                    yield from complete(engine, work, limits)

    def _score(
        self, work: LogLikelihoodWork | RollingWork, mode: ExecutionMode, limits: StepLimits, encoded: Encoded | None
    ) -> Iterator[Event]:
        runner = self._runner
        requests = encode_scored(self._tokenizer, work, runner.max_length) if encoded is None else encoded
        yield from check_scored(requests, runner.max_length, runner.backend.vocab_size)
        yield from score(runner, mode, requests, limits, with_greedy=isinstance(work, LogLikelihoodWork))

    def _render(self, work: ChatWork) -> Iterator[Event]:
        """Render conversations with the tokenizer's own ``apply_chat_template``."""
        template_args: dict[str, Any] = json.loads(work.template_args)
        for index, conversation in enumerate(work.conversations):
            text = self._tokenizer.apply_chat_template(conversation, work.add_generation_prompt, template_args)
            yield Answered([index], [text])

    @functools.cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self._tokenizer)

    def _text_mode(self, requested: str) -> ExecutionMode:
        """Return how the model computes texts, for a request that needs more than scores of pairs."""
        mode = self._runner.backend.text_mode
        if mode is None:
            raise UnsupportedRequest(
                f"the model provides only score, which cannot compute {requested}: the birdie_zmq.Model that load_model "
                "returns needs logits, or hidden and unembed, or init_state, extend and unembed too"
            )
        return mode
