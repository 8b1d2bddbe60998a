"""Continuous batching: a finished row is refilled with the next prompt. The scheduler is real, the answers scripted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, WIDTH, Canvas
from birdie_zmq.engine.backend import GREEDY, Backend, Decoding, NextTokens, PrefillStep, SamplingMetadata, TokenChoice
from birdie_zmq.engine.decode_row import Row
from birdie_zmq.engine.detokenizer import AnswerExtractor, StopConditions
from birdie_zmq.engine.events import Answered
from birdie_zmq.engine.generation import decode_with_cache
from birdie_zmq.engine.generation_settings import GenerationSettings
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.planning.execution_mode import TREES
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Step, Tokens
from birdie_zmq.types import GenerationParams, StepLimits

_PROMPTS, _ROWS = 9, 4
_ALTERNATE = {"target": "scores", "scores": "target", "padding": "target"}


class _ScriptedBackend:
    """A backend that generates the right answers of demo_generate, and records the prompt in each row of each step."""

    budget = StepBudget(tokens=1024, call_tokens=4)  # so low that narrowing pays for few rows, as it does for many
    probe_shapes = frozenset[tuple[int, int]]()
    makes_logits = False
    shares_prefixes = False
    vocab_size = 0
    compile_seconds = tracing_seconds = 0.0

    def __init__(self, answers: dict[bytes, list[int]]) -> None:
        self._answers = answers
        self._order = list(answers)
        self._rows: list[tuple[int, int]] = []
        self.calls: list[list[int | None]] = []
        """For each decode step, the index of the prompt in each row; None for an inactive row."""

    def decoding_rows(self, capacity: int, wanted: int, spare: int = 0) -> int:
        del capacity, spare
        return wanted

    def decoding(self, rows: int, capacity: int, choice: TokenChoice, shared: bytes = b"") -> Decoding:
        del capacity, choice, shared
        self._rows = [(0, 0)] * rows
        return self

    def cached_prefixes(self) -> dict[bytes, int]:
        return {}

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:
        del steps, capacity

    def prefill(
        self,
        step: Step,
        metadata: SamplingMetadata | None = None,
        following: PrefillStep | None = None,
        kept: int = 0,
    ) -> NextTokens:
        del metadata, following, kept
        tokens = [self._answers[self._order[owner]][0] for owner in step.owners]
        return NextTokens(np.array(tokens, np.int32), np.ones(len(tokens), bool))

    def put(self, row: int, position: int, text: Tokens, key: int = 0, sampled: int = 0) -> None:
        del position, key, sampled
        self._rows[row] = self._order.index(text[:-1].tobytes()), 1

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        self.calls.append([self._rows[row][0] if is_active else None for row, is_active in enumerate(active)])
        tokens = np.zeros((len(active), 1), np.int32)
        for row, (number, position) in enumerate(self._rows):
            answer = self._answers[self._order[number]]
            tokens[row] = answer[min(position, len(answer) - 1)]
            self._rows[row] = number, position + 1
        return NextTokens(tokens, np.ones_like(tokens, bool))

    def narrow(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]


def draw() -> str:
    """Return the picture."""
    prompts, calls = _run_scheduler()
    order = list(dict.fromkeys(number for call in calls for number in call if number is not None))
    canvas = Canvas("Nine prompts in four rows: a finished row is refilled, and the batch is narrowed at the end")
    canvas.heading(
        f"{len(prompts)} prompts of demo_generate, {_ROWS} rows",
        "A column is a decode step, a square one token of an",
        "answer, its number that of the prompt.",
    )
    size = min(22.0, (WIDTH - 2 * MARGIN) / len(calls))
    top = canvas.y
    kinds: dict[int | None, str] = {None: "padding"}
    before: dict[int, int | None] = {}
    for at, call in enumerate(calls):
        for row, number in enumerate(call):
            kind = kinds.setdefault(
                number, _ALTERNATE[kinds[before[row]]] if row in before else list(_ALTERNATE)[row % 2]
            )
            before[row] = number
            canvas.box(MARGIN + at * size, top + row * 22, size - 1, 21, kind, 2)
            if number is not None:
                canvas.text(
                    MARGIN + at * size + (size - 1) / 2,
                    top + row * 22 + 15,
                    str(order.index(number) + 1),
                    "token",
                    "middle",
                )
    canvas.y = top + _ROWS * 22 + 4
    used = sum(number is not None for call in calls for number in call)
    computed = sum(map(len, calls))
    empty = [("padding", "an inactive row")] * (used < computed)
    canvas.y += 12
    canvas.text(MARGIN, canvas.y, f"{computed} positions are decoded, {used} of them in active rows", "note")
    canvas.legend(("target", "an answer"), ("scores", "another"), *empty)
    return canvas.svg()


def _run_scheduler() -> tuple[list[Row], list[list[int | None]]]:
    tokenizer = example.tokenizer()
    settings = GenerationParams(until=("\n", "."), max_gen_toks=32)
    reader = AnswerExtractor(tokenizer, settings)
    documents = example.documents("demo_generate")[:_PROMPTS]
    texts = [f"Question: {document['question']}\nAnswer:" for document in documents]
    prompts = [np.array(ids, np.int32) for ids in tokenizer.encode(texts)]
    answers = tokenizer.encode([f" {document['answer']}." for document in documents])
    rows = [Row(number, prompt, 0, reader.begin(), settings.max_gen_toks) for number, prompt in enumerate(prompts)]
    model = _ScriptedBackend({prompt.tobytes(): answer for prompt, answer in zip(prompts, answers, strict=True)})
    runner = ModelRunner(cast(Backend, cast(Any, model)), 1024)
    stop = StopConditions(tokenizer.eos_token_ids, settings.max_gen_toks)
    answered: dict[int, Any] = {}
    generation = GenerationSettings(GREEDY, stop, ())
    for event in decode_with_cache(runner, TREES, rows, generation, StepLimits(max_rows=_ROWS)):
        if isinstance(event, Answered):
            answered.update(zip(event.indices, event.answers, strict=True))
    assert answered == {number: f" {document['answer']}" for number, document in enumerate(documents)}
    return rows, model.calls
