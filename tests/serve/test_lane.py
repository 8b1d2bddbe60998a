"""Lanes: what is collected into a call, and what becomes of prompts whose call is interrupted, cancelled or fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from dataclasses import replace
from typing import Any

import pytest

from birdie_zmq.client.actions import Deliver, DeliverParts, FailItem
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.client.progress import Progress
from birdie_zmq.completions import Completion, CompletionParams, CompletionPrompt, CompletionWork
from birdie_zmq.errors import NonFiniteLogits
from birdie_zmq.serve.dispatcher import Dispatcher
from birdie_zmq.serve.settings import ServeSettings
from tests.serve.fakes import ANSWER, FakeClient, FakeConnection, completion, until

SETTINGS = ServeSettings(collect_s=1e-4, probe_s=60.0, turn_s=1e-3)
WHOLE = len(ANSWER)


def run(test: Callable[[Dispatcher], Coroutine[Any, Any, None]], scoring: FakeClient, generation: FakeClient) -> None:
    """Run a test in an event loop, with lanes that have these clients."""
    clients = iter([scoring, generation])
    dispatcher = Dispatcher(lambda: next(clients), SETTINGS, FakeConnection())
    dispatcher.start()
    try:
        asyncio.run(asyncio.wait_for(test(dispatcher), 60))
    finally:
        dispatcher.close()


async def until_called(client: FakeClient, count: int) -> None:
    while len(client.calls) < count:
        await asyncio.sleep(0.001)


def text(prompt: str, max_tokens: int = 1) -> CompletionPrompt:
    return CompletionPrompt(text=prompt, max_tokens=max_tokens)


def test_what_arrives_during_a_call_forms_the_next_one_sorted_by_text() -> None:
    gate = threading.Event()
    scoring = FakeClient(until(gate))

    async def test(dispatcher: Dispatcher) -> None:
        params = CompletionParams(prompt_logprobs=1)
        first = asyncio.ensure_future(dispatcher.complete([text("x")], params))
        await until_called(scoring, 1)
        others = [asyncio.ensure_future(dispatcher.complete([text(each)], params)) for each in ("b1", "a", "b")]
        other = asyncio.ensure_future(dispatcher.complete([text("c")], CompletionParams()))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *others, other)

    run(test, scoring, FakeClient())
    assert [[prompt.text for prompt in call] for call in scoring.prompts] == [["x"], ["a", "b", "b1", "c"]]
    assert [len(job.items) for job in scoring.calls[1]] == [3, 1]  # of equal parameters


def test_a_generation_lets_others_have_a_turn_and_continues_where_it_was() -> None:
    released = threading.Event()

    def slow(jobs: list[Job]) -> Generator[CallEvent, None, None]:
        (job,) = jobs
        assert isinstance(job.work, CompletionWork)
        yield DeliverParts([0], [completion(job.work.prompts[0], job.work.params, 3)])
        while True:  # it goes on until it is interrupted
            released.wait(0.001)
            yield Progress()

    generation = FakeClient(slow)
    parts: list[str] = []

    async def test(dispatcher: Dispatcher) -> None:
        params = CompletionParams(part_tokens=1, logprobs=0)
        long = asyncio.ensure_future(
            dispatcher.complete([text("long", WHOLE)], params, lambda _, part: parts.append(part.text))
        )
        await until_called(generation, 1)
        (short,) = await dispatcher.complete([text("short", 2)], params)
        (answer,) = await long
        assert answer.text == ANSWER.decode()
        assert len(answer.ids) // 4 == WHOLE
        assert answer.logprobs is not None
        assert len(answer.logprobs.logprobs) // 4 == WHOLE
        assert short.text == ANSWER[:2].decode()

    run(test, FakeClient(), generation)
    assert generation.closed_early.is_set()
    continued = next(prompt for prompt in generation.prompts[1] if prompt.text == "long")
    assert (len(continued.generated) // 4, continued.max_tokens) == (3, WHOLE - 3)
    assert all(ANSWER.decode().startswith(part) for part in parts)


def test_a_retry_that_chooses_another_token_continues_what_was_shown() -> None:
    def changed(jobs: list[Job]) -> Generator[CallEvent, None, None]:
        (job,) = jobs
        assert isinstance(job.work, CompletionWork)
        prompt, params = job.work.prompts[0], job.work.params
        yield DeliverParts([0], [completion(prompt, params, 3)])
        # A worker has died, and the call begins anew, with another first token.
        other = completion(prompt, params)
        yield Deliver([0], [Completion(prompt_ids=other.prompt_ids, ids=b"\1\0\0\0", text="?", finish_reason="stop")])

    generation = FakeClient(changed)

    async def test(dispatcher: Dispatcher) -> None:
        (answer,) = await dispatcher.complete([text("a", WHOLE)], CompletionParams(part_tokens=1))
        assert answer.text == ANSWER.decode()

    run(test, FakeClient(), generation)
    assert [len(call[0].generated) // 4 for call in generation.prompts] == [0, 3]


def test_a_prompt_that_fails_leaves_the_others_their_answers() -> None:
    def script(jobs: list[Job]) -> Generator[CallEvent, None, None]:
        (job,) = jobs
        assert isinstance(job.work, CompletionWork)
        for item, prompt in zip(job.items, job.work.prompts, strict=True):
            if prompt.text == "bad":
                yield FailItem(item, NonFiniteLogits("NaN"))
            else:
                yield Deliver([item], [completion(prompt, job.work.params)])

    async def test(dispatcher: Dispatcher) -> None:
        calls = [dispatcher.complete([text(each)], CompletionParams()) for each in ("good", "bad")]
        good, bad = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(good, list)
        assert isinstance(bad, NonFiniteLogits)

    run(test, FakeClient(script), FakeClient())


def test_prompts_that_nobody_waits_for_are_not_sent() -> None:
    gate = threading.Event()
    scoring = FakeClient(until(gate))

    async def test(dispatcher: Dispatcher) -> None:
        first = asyncio.ensure_future(dispatcher.complete([text("x")], CompletionParams()))
        await until_called(scoring, 1)
        second = asyncio.ensure_future(dispatcher.complete([text("y")], CompletionParams()))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        await first
        await dispatcher.complete([text("z")], CompletionParams())

    run(test, scoring, FakeClient())
    assert [[prompt.text for prompt in call] for call in scoring.prompts] == [["x"], ["z"]]


def test_settings_must_be_above_zero() -> None:
    from birdie_zmq.errors import UsageError

    with pytest.raises(UsageError, match="max_requests"):
        replace(SETTINGS, max_requests=0)
