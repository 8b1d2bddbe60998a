"""Texts and scores of a checkpoint that is decoded with the kernels for a CPU, in the evaluator."""

from __future__ import annotations

from typing import Any

import pytest

from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import cpu_kernels, load_model, load_tokenizer
from birdie_zmq.types import GenerateWork, GenerationParams, StepLimits

PROMPTS = [f"{'one two three four ' * number}Q: {number} + {number}? A:" for number in range(1, 8)]


def _generate(prompts: list[str], **limits: Any) -> list[str]:
    model = load_model("demo", dtype="float32")
    backend = JaxBackend(resolve(model), 256)
    evaluator = Evaluator(TokenizerAdapter(load_tokenizer("demo")), backend, 256)
    work = GenerateWork(prompts=prompts, settings=GenerationParams(max_gen_toks=12), keys=[])
    texts: dict[int, Any] = {}
    for event in evaluator.answer(work, StepLimits(**limits)):
        if isinstance(event, Answered):
            texts.update(zip(event.indices, event.answers, strict=True))
    return [texts[index] for index in range(len(prompts))]


def test_texts_equal_those_that_xla_decodes_alone_at_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIRDIE_ZMQ_ATTENTION", raising=False)
    by_xla = _generate(PROMPTS)
    calls = []
    load = cpu_kernels.load

    def counted_load() -> Any:
        calls.append(1)
        return load()

    monkeypatch.setattr(cpu_kernels, "load", counted_load)
    assert not calls
    monkeypatch.setattr(cpu_kernels, "MIN_BYTES", 0)

    for limits in ({}, {"rows": 1}, {"rows": 4}):
        assert _generate(PROMPTS, **limits) == by_xla
    assert _generate(PROMPTS[::-1]) == by_xla[::-1]
    assert len(set(by_xla)) > 1
    assert calls
