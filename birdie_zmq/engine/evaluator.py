"""From work to answers: encode, plan, run the steps, give each answer as soon as it is known.

Everything here is the same for every framework; the `Backend` does the arithmetic. No shape is sent to the model that
is not among the buckets, so the number of compiles is known beforehand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.answer_text import AnswerText
from birdie_zmq.engine.backend import Backend, Places
from birdie_zmq.engine.buckets import Buckets
from birdie_zmq.engine.encoding import Scored, encode_pairs, encode_rolling
from birdie_zmq.engine.planning import Step, Tokens, plan
from birdie_zmq.engine.tokenizer import TextTokenizer
from birdie_zmq.errors import BirdieError, NonFiniteLogits, RequestError, TokenOutOfVocabulary
from birdie_zmq.wire import messages as m


class Listener(Protocol):
    """Who hears of answers while the work goes on."""

    def answered(self, indices: Sequence[int], answers: m.Answers) -> None:
        """Some items of the work have their answers."""
        ...

    def notice(self, level: m.Level, text: str) -> None:
        """Something that the person at the prompt should read."""
        ...

    def phase(self, phase: str) -> None:
        """What is being done now."""
        ...


class ItemFailed(Exception):
    """One item of the work has no answer, for a reason that has a name."""

    def __init__(self, index: int, error: BirdieError) -> None:
        super().__init__(f"item {index}: {error}")
        self.index = index
        self.error = error


@dataclass(eq=False)
class _Row:
    """A prompt that is being continued: ``tokens`` int32[n], the first ``prompt_length`` of them the prompt."""

    index: int
    tokens: Tokens
    prompt_length: int


@dataclass
class _Totals:
    requests: int = 0
    steps: int = 0
    tokens_requested: int = 0
    tokens_computed: int = 0
    tokens_padding: int = 0
    seconds: float = 0.0
    shapes: set[tuple[int, int]] = field(default_factory=set)
    possible: set[tuple[int, int]] = field(default_factory=set)


class Evaluator:
    """Answers work for one loaded model.

    Args:
        tokenizer: The model's tokenizer.
        backend: The model.
        max_length: The most tokens of a row.
    """

    def __init__(self, tokenizer: TextTokenizer, backend: Backend, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._backend = backend
        self._max_length = max_length
        self._totals = _Totals(shapes=set(backend.trial_shapes), possible=set(backend.trial_shapes))

    @property
    def report(self) -> m.StepReport:
        """What has been computed so far."""
        totals = self._totals
        return m.StepReport(
            requests=totals.requests,
            steps=totals.steps,
            tokens_requested=totals.tokens_requested,
            tokens_computed=totals.tokens_computed,
            tokens_padding=totals.tokens_padding,
            shapes=sorted(totals.shapes),
            shape_bound=len(totals.possible),
            step_seconds=totals.seconds,
        )

    def loglikelihood(self, work: m.LogLikelihoodWork, limits: m.StepLimits, listener: Listener) -> None:
        """Score each continuation after its context.

        Raises:
            ItemFailed: One of the items cannot be scored; the others may have been.
        """
        items = encode_pairs(self._tokenizer, work.pairs, self._max_length)
        self._check_lengths(items, listener)
        nothing = [index for index, item in enumerate(items) if item is None]
        if nothing:
            # The probability of saying nothing is one, and nothing is what greedy decoding gives for no steps.
            scores = m.Scores(loglikelihoods=np.zeros(len(nothing)), greedy=np.ones(len(nothing), dtype=np.bool_))
            listener.answered(nothing, scores)
        kept = [(index, item) for index, item in enumerate(items) if item is not None]
        owners = [index for index, _ in kept]
        self._totals.requests += len(items)
        for numbers, loglikelihoods, greedy in self._score([item for _, item in kept], owners, limits, listener):
            indices = [owners[number] for number in numbers]
            listener.answered(indices, m.Scores(loglikelihoods=loglikelihoods, greedy=greedy))

    def rolling(self, work: m.RollingWork, limits: m.StepLimits, listener: Listener) -> None:
        """Score each whole text; an empty one scores 0. The windows of all texts share steps.

        Raises:
            ItemFailed: One of the items cannot be scored; the others may have been.
        """
        texts = encode_rolling(self._tokenizer, work.texts, self._max_length)
        windows = [window for text in texts for window in text]
        owners = [index for index, text in enumerate(texts) for _ in text]
        unfinished = [len(text) for text in texts]
        totals = np.zeros(len(texts))
        empty = [index for index, text in enumerate(texts) if not text]
        if empty:
            listener.answered(empty, m.RollingScores(loglikelihoods=np.zeros(len(empty))))
        self._totals.requests += len(texts)
        for numbers, loglikelihoods, _ in self._score(windows, owners, limits, listener):
            for number, loglikelihood in zip(numbers, loglikelihoods, strict=True):
                totals[owners[number]] += loglikelihood
                unfinished[owners[number]] -= 1
            done = sorted({owners[number] for number in numbers if unfinished[owners[number]] == 0})
            if done:
                listener.answered(done, m.RollingScores(loglikelihoods=totals[done]))

    def generate(self, work: m.GenerateWork, limits: m.StepLimits, listener: Listener) -> None:
        """Continue each prompt greedily, each row until its own end.

        Without a state to carry on from, every token reads its whole row anew.

        Raises:
            ItemFailed: One of the prompts cannot be continued; others may have been.
        """
        rows = self._prompts(work, listener)
        answer = AnswerText(self._tokenizer, work.settings)
        buckets = self._buckets(limits)
        self._totals.requests += len(rows)
        while rows:
            still: list[_Row] = []
            for step in plan([row.tokens for row in rows], buckets, self._pad):
                places = [(rows[number], row) for number, row in step.places]
                chosen = self._run_choice(step, places, listener)
                for (row, _), token in zip(places, chosen, strict=True):
                    text = self._extend(row, token, answer, work.settings.max_gen_toks)
                    if text is None:
                        still.append(row)
                    else:
                        listener.answered([row.index], m.Texts(texts=[text]))
            rows = still

    def render_chat(self, work: m.ChatWork, listener: Listener) -> None:
        """Render conversations by the tokenizer's own method.

        Raises:
            TokenizerError: The tokenizer has no such method, or it failed.
        """
        template_args: dict[str, Any] = json.loads(work.template_args)
        for index, conversation in enumerate(work.conversations):
            text = self._tokenizer.apply_chat_template(conversation, work.add_generation_prompt, template_args)
            listener.answered([index], m.Texts(texts=[text]))

    # --- Scoring -----------------------------------------------------------------------------------------------------

    def _score(
        self, items: Sequence[Scored], owners: Sequence[int], limits: m.StepLimits, listener: Listener
    ) -> Iterator[tuple[list[int], npt.NDArray[np.float64], npt.NDArray[np.bool_]]]:
        """Run the items' steps; after each, the numbers of the items that it served and their results."""
        for item, owner in zip(items, owners, strict=True):
            self._check_vocabulary(item.tokens, owner)
        self._totals.tokens_requested += sum(len(item.row) for item in items)
        for step in plan([item.row for item in items], self._buckets(limits), self._pad):
            numbers = [number for number, _ in step.places]
            served = [items[number] for number in numbers]
            counts = np.array([item.count for item in served])
            rows = np.repeat(np.array([row for _, row in step.places], dtype=np.int32), counts)
            positions = np.concatenate([np.array(item.positions, dtype=np.int32) for item in served])
            targets = np.concatenate([item.targets for item in served])
            with self._counted(step, listener):
                scores = self._backend.score(step.tokens, Places(rows, positions), targets)
            of_item = np.repeat(np.arange(len(served)), counts)
            if not scores.finite.all():
                number = numbers[of_item[int(np.argmin(scores.finite))]]
                raise ItemFailed(owners[number], _not_finite())
            loglikelihoods = np.zeros(len(served))
            np.add.at(loglikelihoods, of_item, scores.logprobs)  # summed in float64
            greedy = np.ones(len(served), dtype=np.bool_)
            np.logical_and.at(greedy, of_item, scores.greedy)
            yield numbers, loglikelihoods, greedy

    def _check_lengths(self, items: Sequence[Scored | None], listener: Listener) -> None:
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

    def _prompts(self, work: m.GenerateWork, listener: Listener) -> list[_Row]:
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
        for index, ids in enumerate(self._tokenizer.encode(work.prompts)):
            if len(ids) > room:
                cut += 1
                longest = max(longest, len(ids))
            prompt = np.array(ids[-room:] or [self._tokenizer.prefix_token_id], dtype=np.int32)
            self._check_vocabulary(prompt, index)
            rows.append(_Row(index, prompt, len(prompt)))
        if cut:
            listener.notice(
                "warning",
                f"{cut} of {len(rows)} prompts do not leave max_gen_toks={work.settings.max_gen_toks} tokens of the "
                f"model's max_length of {self._max_length} (the longest has {longest} tokens): of each the last {room} "
                "tokens were kept",
            )
        return rows

    def _run_choice(self, step: Step, places: Sequence[tuple[_Row, int]], listener: Listener) -> list[int]:
        rows = np.array([row for _, row in places], dtype=np.int32)
        lasts = np.array([len(row.tokens) - 1 for row, _ in places], dtype=np.int32)
        self._totals.tokens_requested += step.used_tokens
        with self._counted(step, listener):
            chosen = self._backend.next_tokens(step.tokens, Places(rows, lasts))
        if not chosen.finite.all():
            raise ItemFailed(places[int(np.argmin(chosen.finite))][0].index, _not_finite())
        return [int(token) for token in chosen.tokens]

    def _extend(self, row: _Row, token: int, answer: AnswerText, max_gen_toks: int) -> str | None:
        """Take one token; the finished text if it was the last one."""
        ended = token in self._tokenizer.eos_token_ids
        if not ended:
            row.tokens = np.append(row.tokens, np.int32(token))
        generated = row.tokens[row.prompt_length :].tolist()
        if ended or len(generated) >= max_gen_toks or answer.is_over(generated):
            return answer.text(generated)
        return None

    # --- Steps -------------------------------------------------------------------------------------------------------

    @property
    def _pad(self) -> int:
        """A token that is surely in the vocabulary."""
        return 0

    def _buckets(self, limits: m.StepLimits) -> Buckets:
        buckets = Buckets(self._max_length, self._backend.vocab_size, self._backend.budget, limits)
        self._totals.possible |= buckets.shapes
        return buckets

    def _check_vocabulary(self, tokens: Tokens, index: int) -> None:
        highest = int(tokens.max())
        if highest >= self._backend.vocab_size:
            raise ItemFailed(
                index,
                TokenOutOfVocabulary(
                    f"the tokenizer made the token {highest}, but the model has logits for {self._backend.vocab_size} "
                    "tokens only; load_model and load_tokenizer do not fit together"
                ),
            )

    @contextmanager
    def _counted(self, step: Step, listener: Listener) -> Iterator[None]:
        rows, length = step.tokens.shape
        if (rows, length) not in self._totals.shapes:
            listener.phase(f"compiling {rows} x {length}")
        began = time.monotonic()
        yield
        self._totals.seconds += time.monotonic() - began
        if (rows, length) not in self._totals.shapes:
            self._totals.shapes.add((rows, length))
            listener.phase("running")
        self._totals.steps += 1
        self._totals.tokens_computed += step.tokens.size
        self._totals.tokens_padding += step.tokens.size - step.used_tokens


def _not_finite() -> NonFiniteLogits:
    return NonFiniteLogits(
        "the model returned NaN or infinity where a token is scored; check the weights and the dtype (float16 "
        "overflows where bfloat16 and float32 do not)"
    )
