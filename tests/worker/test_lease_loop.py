"""The loop of a model process: which messages the agent gets for the events of a lease, and when a lease ends early."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import pytest

from birdie_zmq.completions import Completion, CompletionPrompt, CompletionWork
from birdie_zmq.engine.distributed.process_group import ProcessGroupError
from birdie_zmq.engine.events import (
    Answered,
    CompilationFinished,
    Event,
    ItemFailed,
    Notice,
    PartlyAnswered,
    StepStarting,
)
from birdie_zmq.engine.model_runner import WorkClock
from birdie_zmq.errors import ModelChanged, NonFiniteLogits
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import pack_work, unpack_answers
from birdie_zmq.types import ComputeCounters, ModelSpec, RollingWork, StepLimits, Work
from birdie_zmq.worker import lease_loop
from birdie_zmq.worker.agent_connection import AgentConnection
from birdie_zmq.worker.lease_loop import LeaseLoop
from birdie_zmq.worker.served_model import ServedModel

Script = Callable[[], Generator[Event, None, None]]
END = ["the process group ends"]
"""The texts of the work that ends the loop."""


class FakeServedModel:
    """A model with a script for each lease; it computes one token for each event."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.evaluator = self
        self.tokens = 0
        self.was_closed = False
        self.encoded: list[Sequence[str]] = []
        self.clock = WorkClock()

    @property
    def computed(self) -> ComputeCounters:
        return ComputeCounters(tokens=self.tokens)

    def check(self, identity: str | None) -> None:
        if identity == "another":
            raise ModelChanged("it has changed")

    def encode(self, work: RollingWork) -> Any:
        self.encoded.append(work.texts)
        return work.texts

    def for_spec(self, spec: ModelSpec) -> FakeServedModel:
        del spec
        return self

    def answer(self, work: Work, limits: StepLimits, encoded: Any) -> Generator[Event, None, None]:
        del limits
        assert isinstance(work, RollingWork)
        assert encoded == work.texts
        if work.texts == END:
            raise ProcessGroupError("the end")
        try:
            for event in self._scripts.pop(0)():
                self.tokens += 1
                yield event
        except GeneratorExit:
            self.was_closed = True
            raise


class FakeConnection:
    """A connection that records messages, and "step" for each counted step."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: m.ModelProcessMessage) -> None:
        self.sent.append(message)

    def count_step(self) -> None:
        self.sent.append("step")


def lease(number: int, texts: Sequence[str] = ("a", "b"), identity: str | None = None) -> m.Lease:
    work = pack_work(RollingWork(texts=list(texts)))
    return m.Lease(lease=number, attempt=1, model=ModelSpec(tag="demo"), work=work, identity=identity)


def run(
    served: FakeServedModel,
    *leases: m.Lease,
    cancelled: set[int] | None = None,
    inbox: lease_loop.Inbox | None = None,
    swap: object = None,
) -> list[Any]:
    """Return what the agent receives for these leases, or for those in the inbox, which ends the loop itself."""
    if inbox is None:
        inbox = queue.SimpleQueue()
        for each in (*leases, lease(99, END)):
            inbox.put(each)
    connection = FakeConnection()
    loop = LeaseLoop(
        cast(ServedModel, served),
        cast(AgentConnection, cast(Any, connection)),
        inbox,
        set() if cancelled is None else cancelled,
        cast(lease_loop.Swap, swap),
    )
    with pytest.raises(ProcessGroupError):
        loop.run()
    assert connection.sent.pop() == "step", "the last lease"
    return connection.sent


def without_progress(sent: Sequence[Any]) -> list[Any]:
    return [message for message in sent if not isinstance(message, m.LeaseProgressed)]


def test_events_become_messages_and_each_step_is_counted_before_the_model_is_called() -> None:
    def script() -> Generator[Event, None, None]:
        yield Notice("warning", "one text is long")
        yield StepStarting(((2, 16), (1, 24)))
        yield CompilationFinished()
        yield StepStarting()
        yield Answered([1, 0], [-2.0, -1.5])

    sent = without_progress(run(FakeServedModel(script), lease(5)))

    answered = sent.pop(-2)
    assert (answered.lease, answered.indices) == (5, [1, 0])
    assert unpack_answers("rolling", answered.answers) == [-2.0, -1.5]
    assert sent == [
        "step",
        m.LeaseNotice(lease=5, level="warning", text="one text is long", once=True),
        "step",
        m.PhaseChanged(phase="compiling", detail="2 x 16, 1 x 24"),
        m.PhaseChanged(phase="running"),
        "step",
        m.LeaseDone(lease=5),
    ]


def test_a_lease_that_is_cancelled_meanwhile_ends_before_the_next_step() -> None:
    cancelled: set[int] = set()

    def script() -> Generator[Event, None, None]:
        yield StepStarting()
        cancelled.add(5)
        yield StepStarting()
        raise AssertionError("the second step is computed")

    served = FakeServedModel(script)
    sent = run(served, lease(5), cancelled=cancelled)

    assert without_progress(sent) == ["step", "step"]
    assert served.was_closed
    assert not cancelled, "the number is forgotten with the lease"


def test_a_lease_that_was_cancelled_before_is_not_computed() -> None:
    assert run(FakeServedModel(), lease(5), cancelled={5}) == ["step"]


def test_a_failed_item_is_named_and_the_next_lease_is_computed() -> None:
    def fails() -> Generator[Event, None, None]:
        yield Answered([0], [-1.0])
        raise ItemFailed(1, NonFiniteLogits("NaN"))

    def succeeds() -> Generator[Event, None, None]:
        yield Answered([0, 1], [-1.0, -2.0])

    sent = run(FakeServedModel(fails, succeeds), lease(5), lease(6))

    (failed,) = [message for message in sent if isinstance(message, m.LeaseFailed)]
    assert (failed.lease, failed.index, failed.error.code) == (5, 1, NonFiniteLogits.code)
    assert sent[-1] == m.LeaseDone(lease=6)


def answers_of(sent: Sequence[Any]) -> list[tuple[list[int], list[Any]]]:
    answered = [message for message in sent if isinstance(message, m.LeaseAnswered)]
    return [(message.indices, unpack_answers("rolling", message.answers)) for message in answered]


def test_answers_that_follow_quickly_are_sent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_loop, "_ANSWERS_S", 1e9)

    def script() -> Generator[Event, None, None]:
        for index in range(4):
            yield Answered([index], [-1.0 * index])
        yield StepStarting(((2, 16),))
        yield Answered([4], [-4.0])
        yield Answered([5], [-5.0])

    sent = run(FakeServedModel(script), lease(5, "abcdef"))

    # The first at once, and the others before a compilation, which may take long, and at the end.
    assert answers_of(sent) == [([0], [0.0]), ([1, 2, 3], [-1.0, -2.0, -3.0]), ([4, 5], [-4.0, -5.0])]
    kinds = [type(message).__name__ for message in without_progress(sent)]
    assert kinds[3:5] == ["LeaseAnswered", "PhaseChanged"]
    assert sent[-1] == m.LeaseDone(lease=5)


def test_answers_before_a_failure_are_sent_and_those_of_a_cancelled_lease_are_not() -> None:
    cancelled: set[int] = set()

    def fails() -> Generator[Event, None, None]:
        yield Answered([0], [-1.0])
        yield Answered([1], [-2.0])
        raise ItemFailed(2, NonFiniteLogits("NaN"))

    def is_cancelled() -> Generator[Event, None, None]:
        yield Answered([0], [-3.0])
        cancelled.add(6)
        yield StepStarting()

    sent = run(FakeServedModel(fails, is_cancelled), lease(5, "abc"), lease(6, "abc"), cancelled=cancelled)

    assert answers_of(sent) == [([0], [-1.0]), ([1], [-2.0])]


def test_an_unexpected_error_tells_its_message_to_the_user_only() -> None:
    def script() -> Generator[Event, None, None]:
        yield StepStarting()
        raise KeyError("a text of a request")

    (failed,) = [message for message in run(FakeServedModel(script), lease(5)) if isinstance(message, m.LeaseFailed)]

    assert failed.index is None
    assert "KeyError" in failed.error.message
    assert "a text of a request" not in failed.error.message
    assert "a text of a request" in (failed.error.traceback or "")


def test_work_for_another_model_fails_before_it_is_encoded() -> None:
    served = FakeServedModel()

    (_, failed) = run(served, lease(5, identity="another"))

    assert (failed.lease, failed.error.code) == (5, ModelChanged.code)
    assert served.encoded == [END]


def test_progress_is_reported_at_intervals_and_before_the_last_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_loop, "_PROGRESS_S", 1e9)
    inbox: lease_loop.Inbox = queue.SimpleQueue()

    def script() -> Generator[Event, None, None]:
        yield StepStarting()
        yield Answered([0], [-1.0])
        yield StepStarting()
        yield Answered([1], [-1.0])
        inbox.put(lease(99, END))  # until now, no lease waits

    inbox.put(lease(5))
    sent = run(FakeServedModel(script), inbox=inbox)

    kinds = [message if isinstance(message, str) else type(message).__name__ for message in sent]
    of_step = ["step", "LeaseProgressed", "LeaseAnswered"]
    assert kinds == ["step", *of_step, *of_step, "LeaseDone"]
    assert [message.progress.tokens for message in sent if isinstance(message, m.LeaseProgressed)] == [1, 3]


class FakeCompletions(FakeServedModel):
    """The same for completions."""

    def encode(self, work: Any) -> Any:
        del work

    def answer(self, work: Work, limits: StepLimits, encoded: Any) -> Generator[Event, None, None]:
        if isinstance(work, RollingWork):
            raise ProcessGroupError("the end")
        yield from self._scripts.pop(0)()


def completions(number: int, count: int) -> m.Lease:
    work = pack_work(CompletionWork(prompts=[CompletionPrompt(text="a", max_tokens=2)] * count))
    return m.Lease(lease=number, attempt=1, model=ModelSpec(tag="demo"), work=work)


def test_parts_are_sent_as_they_come_unless_they_follow_too_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Completion(ids=b"abcd", text="a")

    def script() -> Generator[Event, None, None]:
        yield PartlyAnswered([0], [part])
        yield PartlyAnswered([0], [part])
        monkeypatch.setattr(lease_loop, "_PARTS_S", 0.0)
        yield PartlyAnswered([0], [part])
        yield Answered([0], [Completion(ids=b"abcdefgh", text="ab", finish_reason="length")])

    monkeypatch.setattr(lease_loop, "_PARTS_S", 1e9)
    sent = without_progress(run(FakeCompletions(script), completions(5, 1)))

    parts = [message for message in sent if isinstance(message, m.LeasePartlyAnswered)]
    assert [(each.lease, each.indices) for each in parts] == [(5, [0])] * 2
    assert unpack_answers("completion", parts[0].answers) == [part]
    assert sent[-1] == m.LeaseDone(lease=5)


def test_large_answers_are_sent_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Completion(text="a" * 1000, finish_reason="length")
    monkeypatch.setattr(lease_loop, "_MAX_ANSWERS_BYTES", 2 * large.size_bytes)

    def script() -> Generator[Event, None, None]:
        yield Answered([0, 1, 2, 3, 4], [large] * 5)

    sent = run(FakeCompletions(script), completions(5, 5))

    answered = [message for message in sent if isinstance(message, m.LeaseAnswered)]
    assert [message.indices for message in answered] == [[0, 1], [2, 3], [4]]
    assert sent[-1] == m.LeaseDone(lease=5)
