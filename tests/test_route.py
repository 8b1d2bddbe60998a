"""The route of a request goes down once: what a module has called does not enter it again, and ARCHITECTURE.md lists it."""

from __future__ import annotations

import queue
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

import birdie_zmq
from birdie_zmq.completions import CompletionParams, CompletionPrompt, CompletionWork
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import pack_work
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, ModelSpec, RollingWork, Work
from birdie_zmq.worker.agent_connection import AgentConnection
from birdie_zmq.worker.lease_loop import LeaseLoop
from birdie_zmq.worker.model_loader import load
from birdie_zmq.worker.served_model import ServedModel
from birdie_zmq.worker.start_up import apply_config

PACKAGE = Path(birdie_zmq.__file__).parent
DEMO = ModelSpec(tag="demo")
TOKENIZER = {"engine/tokenizers/kind", "models/tokenizer"}
"""They call methods of a tokenizer, which its adapter in another file overrides."""

WORKS: list[Work] = [
    LogLikelihoodWork(pairs=[("The cat sat", " on"), ("The cat sat", " in"), ("A dog", " ran")]),
    RollingWork(texts=["The cat sat on the mat."]),
    GenerateWork(prompts=["The cat", "A dog"], settings=GenerationParams(max_gen_toks=4)),
    CompletionWork(
        prompts=[CompletionPrompt(text="The cat sat", max_tokens=1), CompletionPrompt(text="A dog", max_tokens=4)],
        params=CompletionParams(prompt_logprobs=1, logprobs=1, with_texts=True, part_tokens=1),
    ),
]


class SentMessages:
    """A connection to the agent that keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[m.ModelProcessMessage] = []

    def send(self, message: m.ModelProcessMessage) -> None:
        self.messages.append(message)

    def count_step(self) -> None:
        pass


@pytest.fixture(scope="module")
def served() -> ServedModel:
    config = m.WorkerConfig(engine="jax")
    return load(m.StartModel(model=DEMO, start_count=1, config=config), apply_config(config))


def calls_up(function: Callable[[], object]) -> set[tuple[str, str]]:
    """Return each module that is entered while one of its calls runs, with the module that enters it."""
    running: list[str | None] = []
    found: set[tuple[str, str]] = set()

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        del argument
        if event == "call":
            path = Path(frame.f_code.co_filename)
            module = str(path.relative_to(PACKAGE).with_suffix("")) if path.is_relative_to(PACKAGE) else None
            caller = next((name for name in reversed(running) if name is not None), None)
            if module is not None and caller is not None and module != caller and module in running:
                found.add((module, caller))
            running.append(module)
        elif event == "return" and running:
            running.pop()

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def no_swap(served: ServedModel, spec: ModelSpec) -> ServedModel:
    raise AssertionError("no weights are swapped")


@pytest.mark.parametrize("work", WORKS, ids=lambda work: type(work).__name__)
def test_the_model_process_computes_a_lease_without_calls_up(work: Work, served: ServedModel) -> None:
    def compute() -> list[m.ModelProcessMessage]:
        sent = SentMessages()
        loop = LeaseLoop(served, cast(AgentConnection, cast(Any, sent)), queue.SimpleQueue(), set(), no_swap)
        loop._answer(loop._encode(m.Lease(lease=1, attempt=1, model=DEMO, work=pack_work(work))))
        return sent.messages

    compute()  # While JAX traces a function for the first time, it calls the backend's own.
    computed: list[m.ModelProcessMessage] = []
    found = calls_up(lambda: computed.extend(compute()))

    assert computed[-1] == m.LeaseDone(lease=1)
    assert {(module, caller) for module, caller in found if caller not in TOKENIZER} == set()


def test_the_architecture_lists_the_route_with_no_module_more_than_twice() -> None:
    text = PACKAGE.with_name("ARCHITECTURE.md").read_text(encoding="utf-8")
    route = text.partition("### The calls")[2].partition("\n##")[0]
    modules = re.findall(r"`([a-z_/]+)\.py`", route)

    assert len(modules) > 20
    assert [module for module in modules if not (PACKAGE / f"{module}.py").is_file()] == []
    assert [module for module, count in Counter(modules).items() if count > 2] == []
