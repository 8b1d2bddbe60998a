"""Generation: prompts side by side, and a row that ends makes room for the next. The scheduler is real, the answers known."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, WIDTH, Canvas
from birdie_zmq.engine.backend import Backend, Decoding, NextTokens
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.detokenizer import AnswerExtractor
from birdie_zmq.engine.generation import Row, StopConditions, decode_with_cache
from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Tokens
from birdie_zmq.types import GenerationParams, SamplingParams, StepLimits

_PROMPTS, _ROWS = 9, 4
_OTHER = {"target": "scores", "scores": "target", "padding": "target"}


class _Answers:
    """A model that says the right answers of demo_generate, and writes down which row says them when."""

    budget = StepBudget(tokens=1024, call_tokens=4)  # rows are so few: it is worth to leave one out, as it is with many

    def __init__(self, answers: dict[bytes, list[int]]) -> None:
        self._answers = answers
        self._order = list(answers)
        self._rows: list[tuple[int, int]] = []
        self.calls: list[list[int | None]] = []
        """Of each call, the number of the prompt in each row."""

    def decoding_rows(self, capacity: int, wanted: int) -> int:
        del capacity
        return wanted

    def decoding(self, rows: int, capacity: int, sampling: SamplingParams | None = None) -> Decoding:
        del capacity, sampling
        self._rows = [(0, 0)] * rows
        return self

    def put(self, row: int, prompt: Tokens, pieces: Sequence[PrefillChunk], key: int = 0, drawn: int = 0) -> list[int]:
        del key, drawn
        self._rows[row] = self._order.index(prompt.tobytes()), 0
        return [piece.size for piece in pieces]

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        self.calls.append([self._rows[row][0] if is_active else None for row, is_active in enumerate(active)])
        tokens = np.zeros((len(active), 1), np.int32)
        for row, (number, said) in enumerate(self._rows):
            answer = self._answers[self._order[number]]
            tokens[row] = answer[min(said, len(answer) - 1)]
            self._rows[row] = number, said + 1
        return NextTokens(tokens, np.ones_like(tokens, bool))

    def narrow(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]


def draw() -> str:
    """The picture."""
    prompts, calls = _scheduled()
    order = list(dict.fromkeys(number for call in calls for number in call if number is not None))
    canvas = Canvas("Nine prompts in four rows: one that ends makes room for the next, and at last rows are left out")
    canvas.heading(
        f"{len(prompts)} prompts of demo_generate, {_ROWS} rows",
        "A column is a call of the model, a square one token of an",
        "answer, its number that of the prompt.",
    )
    size = min(22.0, (WIDTH - 2 * MARGIN) / len(calls))
    top = canvas.y
    kinds: dict[int | None, str] = {None: "padding"}
    before: dict[int, int | None] = {}
    for at, call in enumerate(calls):
        for row, number in enumerate(call):
            kind = kinds.setdefault(number, _OTHER[kinds[before[row]]] if row in before else list(_OTHER)[row % 2])
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
    empty = [("padding", "an empty row")] * (used < computed)
    canvas.y += 12
    canvas.text(MARGIN, canvas.y, f"{computed} positions are decoded, {used} of them for a prompt that goes on", "note")
    canvas.legend(("target", "an answer"), ("scores", "another"), *empty)
    return canvas.svg()


def _scheduled() -> tuple[list[Row], list[list[int | None]]]:
    tokenizer = example.tokenizer()
    settings = GenerationParams(until=("\n", "."), max_gen_toks=32)
    reader = AnswerExtractor(tokenizer, settings)
    documents = example.documents("demo_generate")[:_PROMPTS]
    texts = [f"Question: {document['question']}\nAnswer:" for document in documents]
    prompts = [np.array(ids, np.int32) for ids in tokenizer.encode(texts)]
    said = tokenizer.encode([f" {document['answer']}." for document in documents])
    rows = [Row(number, prompt, 0, reader.begin()) for number, prompt in enumerate(prompts)]
    model = _Answers({prompt.tobytes(): answer for prompt, answer in zip(prompts, said, strict=True)})
    finished = decode_with_cache(
        cast(Backend, cast(Any, model)),
        rows,
        StopConditions(tokenizer.eos_token_ids, settings.max_gen_toks),
        None,
        StepLimits(max_rows=_ROWS),
        lambda _shapes: contextlib.nullcontext(),
        Counters(),
        lambda _error, _count: None,
    )
    assert {row.index: row.answer.text() for row in finished} == {
        number: f" {document['answer']}" for number, document in enumerate(documents)
    }
    return rows, model.calls
