"""AgentCore, event by event with a fake clock; then under random event sequences by Hypothesis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from birdie_zmq.errors import ModelCallError, ModelProcessDied, UserModuleError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.items import PackedWork
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_answers, unpack_work
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import (
    REQUEST_ARGUMENTS,
    Answer,
    ComputeCounters,
    DescribeWork,
    ErrorReport,
    GenerateWork,
    GenerationParams,
    ModelSpec,
    RequestArgument,
    StepLimits,
    Work,
)
from birdie_zmq.worker.core import AgentCore
from birdie_zmq.worker.events import (
    Action,
    Drain,
    Event,
    ForwardToBroker,
    ForwardToModel,
    LeaseCancelled,
    LeaseReceived,
    LeasesRevoked,
    Log,
    MemoryFreed,
    ModelMessageReceived,
    ModelProcessExited,
    SendToBroker,
    SendToModel,
    StartModelProcess,
    Stop,
    StopModelProcess,
    Tick,
)

A, B = (ModelSpec(tag=tag) for tag in "AB")
decode = decoder(m.AgentMessage | m.WorkerMessage)
LOADED = m.ModelLoaded(seconds=1.5)
REPORT = ErrorReport(code=ModelCallError.code, message="boom", traceback="line 3")
LOAD_FAILED = m.ModelLoadFailed(
    error=ErrorReport(code=UserModuleError.code, message="no such user module", traceback="line 1")
)


class Harness:
    """An AgentCore with a fake clock, which records its log and notices."""

    def __init__(
        self,
        settings: AgentSettings | None = None,
        request_arguments: frozenset[RequestArgument] = frozenset(),
        *,
        swaps_weights: bool = False,
    ) -> None:
        self.settings = settings or AgentSettings()
        self.core = AgentCore(self.settings, request_arguments=request_arguments, swaps_weights=swaps_weights)
        self.now = 1_000.0
        self.logged: list[str] = []
        self.notices: list[m.LeaseNotice] = []

    def handle(self, event: Event) -> list[Action]:
        """Return the actions for an event, without log lines and notices, which are recorded."""
        actions: list[Action] = []
        for action in self.core.handle(event, self.now):
            match action:
                case Log(_, text):
                    self.logged.append(text)
                case SendToBroker(m.LeaseNotice() as notice):
                    self.notices.append(notice)
                case ForwardToBroker(frame) if isinstance(notice := decode(frame), m.LeaseNotice):
                    self.notices.append(notice)
                case _:
                    actions.append(action)
        return actions

    def receive_leases(self, *leases: m.Lease) -> list[Action]:
        return [action for lease in leases for action in self.handle(received(lease))]

    def from_model(self, *messages: m.ModelProcessMessage) -> list[Action]:
        return [
            action for message in messages for action in self.handle(ModelMessageReceived(message, encode(message)))
        ]

    def exit_process(self, returncode: int = -11, trace: str | None = None) -> list[Action]:
        return self.handle(ModelProcessExited(returncode, trace))

    def run_without_progress(self, seconds: float) -> list[Action]:
        """Advance the clock second by second while the process sends heartbeats and makes no progress."""
        actions: list[Action] = []
        for _ in range(round(seconds)):
            self.now += 1.0
            actions += self.from_model(m.ModelHeartbeat(steps=0)) + self.handle(Tick())
        return actions

    def advance(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.handle(Tick())

    def serve(self, *leases: m.Lease) -> list[m.Lease]:
        """Receive leases of one model, let a process load it, and return the leases that the process was sent."""
        self.receive_leases(*leases)
        return sent_leases(self.from_model(LOADED))


def received(lease: m.Lease) -> LeaseReceived:
    return LeaseReceived(lease, encode(lease))


def prompts(texts: Sequence[str]) -> PackedWork:
    return pack_work(GenerateWork(prompts=list(texts), settings=GenerationParams()))


def lease(number: int, model: ModelSpec = A, texts: str = "x") -> m.Lease:
    """Make a lease with one item per letter."""
    return m.Lease(lease=number, attempt=1, model=model, work=prompts(texts))


def texts_of(lease: m.Lease) -> list[str]:
    work = unpack_work(lease.work)
    assert isinstance(work, GenerateWork)
    return work.prompts


def answer(sent: m.Lease, *indices: int) -> m.LeaseAnswered:
    """Answer some items, each with its letter in upper case."""
    return answered(sent.lease, {i: texts_of(sent)[i].upper() for i in indices})


def answered(number: int, texts: dict[int, str]) -> m.LeaseAnswered:
    packed = pack_answers("generate", list(texts.values()))
    return m.LeaseAnswered(lease=number, indices=list(texts), answers=packed)


def done(sent: m.Lease) -> m.LeaseDone:
    return m.LeaseDone(lease=sent.lease)


def fail(sent: m.Lease, index: int | None = None) -> m.LeaseFailed:
    return m.LeaseFailed(lease=sent.lease, error=REPORT, index=index)


def sent_leases(actions: Sequence[Action]) -> list[m.Lease]:
    """Return the leases that the model process was sent."""
    messages = [decode(action.frame) for action in actions if isinstance(action, ForwardToModel)]
    return [message for message in messages if isinstance(message, m.Lease)]


ToBroker = m.LeaseMessage | m.LeaseCrashed | m.LeaseReturned | m.DrainWorker


def to_broker(actions: Sequence[Action]) -> list[ToBroker]:
    """Return the messages that the broker was sent, forwarded ones included."""
    return [
        action.message if isinstance(action, SendToBroker) else decode(action.frame)
        for action in actions
        if isinstance(action, SendToBroker | ForwardToBroker)
    ]


def answers(actions: Sequence[Action]) -> list[tuple[int, list[int], list[Answer]]]:
    """Return the answers that the broker was sent: lease, indices, texts."""
    return [
        (message.lease, message.indices, unpack_answers("generate", message.answers))
        for message in to_broker(actions)
        if isinstance(message, m.LeaseAnswered)
    ]


@pytest.fixture
def harness() -> Harness:
    return Harness()


# --- The phases of the model process ---------------------------------------------------------------------------------


def test_phases_of_a_model_process(harness: Harness) -> None:
    core = harness.core
    assert (core.phase, core.model) == ("no model", None)
    harness.receive_leases(lease(1))
    assert (core.phase, core.model) == ("loading", A)
    (sent,) = sent_leases(harness.from_model(LOADED))
    assert (core.phase, core.model) == ("ready", A)
    harness.from_model(done(sent))
    harness.receive_leases(lease(2, B))
    assert (core.phase, core.model) == ("ending", A)
    harness.exit_process(0)
    assert (core.phase, core.model) == ("loading", B)


def absent(harness: Harness) -> None:
    pass


def loading(harness: Harness) -> None:
    harness.receive_leases(lease(1))


def idle(harness: Harness) -> None:
    (sent,) = harness.serve(lease(1))
    harness.from_model(done(sent))


def busy(harness: Harness) -> None:
    harness.serve(lease(1))


def ending(harness: Harness) -> None:
    idle(harness)
    harness.receive_leases(lease(2, B))


SAME_MODEL, OTHER_MODEL = lease(9, A), lease(9, B)
FORWARDED = ForwardToModel(encode(SAME_MODEL))


@pytest.mark.parametrize(
    ("phase", "arrival", "expected"),
    [
        (absent, SAME_MODEL, [StartModelProcess(A, 1)]),
        (loading, SAME_MODEL, []),
        (loading, OTHER_MODEL, []),
        (idle, SAME_MODEL, [FORWARDED]),
        (idle, OTHER_MODEL, [StopModelProcess(kill=False)]),
        (busy, SAME_MODEL, [FORWARDED]),
        (busy, OTHER_MODEL, []),
        (ending, SAME_MODEL, []),
        (ending, OTHER_MODEL, []),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_actions_for_a_lease_in_each_phase(
    harness: Harness, phase: Callable[[Harness], None], arrival: m.Lease, expected: list[Action]
) -> None:
    phase(harness)
    assert harness.receive_leases(arrival) == expected


def test_counters_of_exited_processes_are_kept(harness: Harness) -> None:
    (sent,) = harness.serve(lease(1))
    harness.from_model(
        m.ModelHeartbeat(steps=3, computed=ComputeCounters(tokens=30, padding=3, executables=1)), done(sent)
    )
    harness.receive_leases(lease(2, B))
    harness.exit_process(0)
    assert harness.core.computed == ComputeCounters(tokens=30, padding=3, executables=1)
    harness.from_model(LOADED, m.ModelHeartbeat(steps=1, computed=ComputeCounters(tokens=10, generated=5)))
    assert harness.core.computed == ComputeCounters(tokens=40, padding=3, generated=5, executables=1)


def test_phase_reported_by_the_model_process_is_the_phase(harness: Harness) -> None:
    harness.serve(lease(1))
    assert harness.core.phase == "ready"
    harness.from_model(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    assert harness.core.phase == "compiling 4 x 128"
    harness.from_model(m.PhaseChanged(phase="running"))
    assert harness.core.phase == "running"
    harness.exit_process()
    assert harness.core.phase == "no model"


def test_process_starts_are_counted(harness: Harness) -> None:
    assert harness.serve(lease(1)) != []
    harness.exit_process()
    assert harness.receive_leases(lease(2)) == [StartModelProcess(A, 2)]


def test_loading_is_reported_at_its_begin_and_end(harness: Harness) -> None:
    harness.serve(lease(1), lease(2))
    assert [(notice.lease, notice.text) for notice in harness.notices] == [(1, "loading A"), (1, "loaded A in 1.5 s")]
    assert [notice.text for notice in harness.notices] == harness.logged


def test_loading_notice_names_the_replaced_model(harness: Harness) -> None:
    ending(harness)
    harness.exit_process(0)
    assert harness.notices[-1].text == "loading B, in place of A"
    harness.from_model(LOADED)
    harness.exit_process()
    harness.receive_leases(lease(3, B))
    assert harness.notices[-1].text == "loading B"


def test_only_a_long_compilation_is_reported(harness: Harness) -> None:
    harness.serve(lease(1))
    before = list(harness.notices)
    harness.from_model(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    harness.run_without_progress(1)
    harness.from_model(m.PhaseChanged(phase="running"))
    harness.run_without_progress(9)
    assert harness.notices == before, "a short compilation was reported"
    harness.from_model(m.PhaseChanged(phase="compiling", detail="8 x 256"))
    harness.run_without_progress(9)
    assert [(notice.lease, notice.text) for notice in harness.notices[len(before) :]] == [
        (1, "compiling 8 x 256 for A")
    ]


def test_stall_does_not_count_as_compilation_time(harness: Harness) -> None:
    harness.serve(lease(1))
    before = list(harness.notices)
    harness.from_model(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    harness.now += 3_600
    harness.handle(Tick(stall_s=3_599.0))
    assert harness.notices == before


def test_idle_model_stays_loaded(harness: Harness) -> None:
    (sent,) = harness.serve(lease(1))
    harness.from_model(done(sent))
    assert harness.run_without_progress(10_000) == []
    assert harness.core.phase == "ready"


# --- Leases and their answers ----------------------------------------------------------------------------------------


def test_leases_are_sent_in_order_after_loading(harness: Harness) -> None:
    assert sent_leases(harness.receive_leases(lease(1, texts="a"), lease(2, texts="b"))) == []
    assert [texts_of(sent) for sent in sent_leases(harness.from_model(LOADED))] == [["a"], ["b"]]


def test_lease_is_sent_unchanged(harness: Harness) -> None:
    given = m.Lease(lease=5, attempt=3, model=A, work=prompts("a"), limits=StepLimits(max_rows=2))
    harness.receive_leases(given)
    assert harness.from_model(LOADED) == [ForwardToModel(encode(given))]


def test_second_lease_with_the_number_of_a_held_one_is_ignored(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5, texts="ab"))
    assert harness.receive_leases(lease(5, texts="c")) == []
    assert "ignored a lease of the broker" in harness.logged[-1]
    assert answers(harness.from_model(answer(sent, 1))) == [(5, [1], ["B"])]


def test_lease_is_sent_once(harness: Harness) -> None:
    harness.serve(lease(1))
    assert harness.advance(1.0) == []
    assert len(sent_leases(harness.receive_leases(lease(2)))) == 1


def test_answers_are_forwarded_as_they_arrive(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5, texts="abc"))
    assert answers(harness.from_model(answer(sent, 2, 0))) == [(5, [2, 0], ["C", "A"])]
    assert answers(harness.from_model(answer(sent, 1))) == [(5, [1], ["B"])]
    assert to_broker(harness.from_model(done(sent))) == [m.LeaseDone(lease=5)]


def test_failure_is_forwarded_and_ends_the_lease(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5, texts="abc"))
    assert harness.from_model(fail(sent, index=2)) == [SendToBroker(m.LeaseFailed(lease=5, error=REPORT, index=2))]
    assert harness.from_model(answer(sent, 0), done(sent), fail(sent)) == []


def test_notices_while_loading_go_to_the_waiting_lease_and_later_ones_are_dropped(harness: Harness) -> None:
    harness.receive_leases(lease(1, A), lease(2, B))
    harness.from_model(m.ModelNotice(level="info", text="waiting for all 2 processes"))
    assert [(notice.lease, notice.text) for notice in harness.notices][1:] == [(1, "waiting for all 2 processes")]
    harness.from_model(LOADED)
    before = len(harness.notices)
    harness.from_model(m.ModelNotice(level="info", text="late"))
    assert len(harness.notices) == before


def test_exit_of_rank_0_is_reported_as_that_of_the_process_group() -> None:
    harness = Harness()
    harness.core = AgentCore(harness.settings, num_processes=2)
    harness.serve(lease(1))
    harness.exit_process()
    assert (
        "exited unexpectedly: by SIGSEGV (it is rank 0 of a process group of 2: when one rank ends, all end"
        in harness.logged[-1]
    )


def test_notice_is_forwarded(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5))
    harness.from_model(m.LeaseNotice(lease=sent.lease, level="warning", text="slow", once=True))
    assert harness.notices[-1] == m.LeaseNotice(lease=5, level="warning", text="slow", once=True)


def test_answers_and_progress_are_forwarded_unchanged(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5, texts="abc"))
    progressed = m.LeaseProgressed(lease=sent.lease, progress=ComputeCounters(tokens=7))
    assert harness.from_model(answer(sent, 1), progressed) == [
        ForwardToBroker(encode(answer(sent, 1))),
        ForwardToBroker(encode(progressed)),
    ]


def test_answer_without_an_item_is_ignored(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5, texts="abc"))
    assert harness.from_model(answered(sent.lease, {3: "X"})) == []
    assert "no item of that index" in harness.logged[-1]


def test_messages_about_a_lease_that_was_not_sent_are_ignored(harness: Harness) -> None:
    harness.serve(lease(5))
    harness.receive_leases(lease(6, B))
    progressed = m.LeaseProgressed(lease=6, progress=ComputeCounters(tokens=7))
    for number in (6, 7):
        messages = answered(number, {0: "X"}), m.LeaseDone(lease=number), m.LeaseFailed(lease=number, error=REPORT)
        assert harness.from_model(*messages, progressed) == []


# --- Another model ---------------------------------------------------------------------------------------------------


def test_process_is_stopped_after_the_last_lease_of_its_model(harness: Harness) -> None:
    first, second = harness.serve(lease(1, A), lease(2, A))
    assert harness.receive_leases(lease(3, B)) == []
    assert harness.from_model(done(first)) == [SendToBroker(m.LeaseDone(lease=1))]
    assert harness.from_model(done(second)) == [SendToBroker(m.LeaseDone(lease=2)), StopModelProcess(kill=False)]


def test_new_process_starts_after_the_old_one_has_exited(harness: Harness) -> None:
    ending(harness)
    assert harness.advance(0.1) == []
    assert harness.exit_process(-15) == [StartModelProcess(B, 2)]
    assert [texts_of(sent) for sent in sent_leases(harness.from_model(LOADED))] == [["x"]]


def test_lease_of_the_loaded_model_is_served_before_the_model_switch(harness: Harness) -> None:
    (first,) = harness.serve(lease(1, A))
    harness.receive_leases(lease(2, B))
    (third,) = sent_leases(harness.receive_leases(lease(3, A)))
    assert to_broker(harness.from_model(done(first))) == [m.LeaseDone(lease=1)]
    assert harness.from_model(done(third)) == [SendToBroker(m.LeaseDone(lease=3)), StopModelProcess(kill=False)]


def test_later_leases_of_the_loaded_model_do_not_starve_another_model(harness: Harness) -> None:
    (first,) = harness.serve(lease(1, A))
    harness.receive_leases(lease(2, B))
    waiting = sent_leases(harness.receive_leases(lease(3, A)))
    harness.from_model(done(first))
    waiting += sent_leases(harness.receive_leases(lease(4, A)))
    actions = harness.from_model(*map(done, waiting))
    assert actions[-1] == StopModelProcess(kill=False)


def test_lease_of_the_old_model_waits_while_its_process_ends(harness: Harness) -> None:
    ending(harness)
    harness.receive_leases(lease(3, A, texts="again"))
    assert harness.exit_process(0) == [StartModelProcess(B, 2)]
    (sent,) = sent_leases(harness.from_model(LOADED))
    assert sent.model == B
    assert harness.from_model(done(sent))[1:] == [StopModelProcess(kill=False)]
    assert harness.exit_process(0) == [StartModelProcess(A, 3)]


def test_same_tag_with_other_arguments_is_another_model(harness: Harness) -> None:
    idle(harness)
    assert harness.receive_leases(lease(2, ModelSpec(tag="A", arguments='{"seed": 1}'))) == [
        StopModelProcess(kill=False)
    ]


SWAP = SendToModel(m.SwapWeights(model=B))


@pytest.fixture
def swapping() -> Harness:
    """An agent that swaps weights and has served A; its process has no lease."""
    harness = Harness(swaps_weights=True)
    (first,) = harness.serve(lease(1, A))
    harness.from_model(m.ModelHeartbeat(steps=1, computed=ComputeCounters(tokens=7)), done(first))
    return harness


def test_weights_are_swapped_once_no_lease_is_open(swapping: Harness) -> None:
    (running,) = sent_leases(swapping.receive_leases(lease(2, A)))

    assert swapping.receive_leases(lease(3, B)) == []
    assert swapping.from_model(done(running)) == [SendToBroker(m.LeaseDone(lease=2)), SWAP]
    assert (swapping.core.model, swapping.core.phase) == (B, "loading")
    assert swapping.receive_leases(lease(4, B), lease(5, A)) == []
    assert [sent.lease for sent in sent_leases(swapping.from_model(LOADED))] == [3, 4]


def test_counters_go_on_after_weights_are_swapped(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))
    # The process sent this heartbeat before it received the message.
    swapping.from_model(m.ModelHeartbeat(steps=1, computed=ComputeCounters(tokens=7)), LOADED)
    swapping.from_model(m.ModelHeartbeat(steps=2, computed=ComputeCounters(tokens=5)))

    assert swapping.core.computed == ComputeCounters(tokens=12)


def test_process_that_refuses_to_swap_is_replaced(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))

    assert swapping.from_model(m.SwapRefused(reason="its tokenizer differs")) == [StopModelProcess(kill=False)]
    assert swapping.exit_process(-15) == [StartModelProcess(B, 2)]
    assert "its tokenizer differs" in swapping.notices[-2].text
    assert [sent.lease for sent in sent_leases(swapping.from_model(LOADED))] == [2]


def test_failed_swap_fails_its_leases_and_ends_the_process(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))
    error = ErrorReport(code="model-load", message="a tensor is missing")

    assert swapping.from_model(m.ModelLoadFailed(error=error)) == [
        SendToBroker(m.LeaseFailed(lease=2, error=error)),
        StopModelProcess(kill=False),
    ]
    swapping.exit_process(-15)
    assert swapping.receive_leases(lease(3, A)) == [StartModelProcess(A, 2)]


def test_process_that_dies_while_it_swaps_is_replaced(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))

    assert swapping.exit_process(-9) == []
    assert swapping.advance(AgentSettings().restart_delay_s) == [StartModelProcess(B, 2)]


def test_weights_are_not_swapped_where_arguments_differ(swapping: Harness) -> None:
    other = ModelSpec(tag="B", arguments='{"dtype": "bfloat16"}')

    assert swapping.receive_leases(lease(2, other)) == [StopModelProcess(kill=False)]


def test_loading_is_stopped_when_no_lease_waits_for_it(harness: Harness) -> None:
    loading(harness)
    harness.handle(LeasesRevoked())
    assert harness.receive_leases(lease(2, B)) == [StopModelProcess(kill=False)]


def test_process_that_does_not_exit_in_time_is_killed_once(harness: Harness) -> None:
    ending(harness)
    assert harness.advance(harness.settings.terminate_s - 0.1) == []
    assert harness.advance(0.1) == [StopModelProcess(kill=True)]
    assert harness.advance(10 * harness.settings.terminate_s) == []
    assert harness.exit_process(-9) == [StartModelProcess(B, 2)]


def test_requested_exit_is_not_a_crash(harness: Harness) -> None:
    ending(harness)
    harness.receive_leases(lease(3, A))
    assert harness.exit_process(-15) == [StartModelProcess(B, 2)]
    assert not any("exited unexpectedly" in text for text in harness.logged)


def test_process_that_exits_in_time_is_not_killed(harness: Harness) -> None:
    ending(harness)
    harness.exit_process(0)
    assert harness.advance(10 * harness.settings.terminate_s) == []


@pytest.mark.parametrize("late_message", [LOADED, LOAD_FAILED], ids=["loaded", "load-failed"])
def test_messages_of_an_ending_process_do_not_change_the_phase(
    harness: Harness, late_message: m.ModelProcessMessage
) -> None:
    loading(harness)
    harness.handle(LeasesRevoked())
    harness.receive_leases(lease(2, B))
    harness.now += harness.settings.terminate_s - 0.1
    assert harness.from_model(late_message) == []
    assert harness.core.phase == "ending"
    assert harness.advance(0.1) == [StopModelProcess(kill=True)]


# --- Crashes ---------------------------------------------------------------------------------------------------------


def crashes(actions: Sequence[Action]) -> list[m.LeaseCrashed]:
    return [message for message in to_broker(actions) if isinstance(message, m.LeaseCrashed)]


def test_running_lease_is_reported_as_crashed_and_the_others_are_returned(harness: Harness) -> None:
    harness.serve(lease(5, texts="ab"), lease(6, texts="c"))
    actions = harness.exit_process(trace="line 7")
    (crash,) = crashes(actions)
    assert (crash.lease, crash.error.traceback) == (5, "line 7")
    assert to_broker(actions)[1:] == [m.LeaseReturned(lease=6)]
    assert harness.core.phase == "no model"


@pytest.mark.parametrize(
    ("returncode", "name"),
    [(-11, "by SIGSEGV"), (-9, "by SIGKILL .*out of memory"), (-100, "by signal 100"), (3, "with exit status 3")],
)
def test_crash_names_the_cause_of_the_exit(harness: Harness, returncode: int, name: str) -> None:
    harness.serve(lease(5))
    (crash,) = crashes(harness.exit_process(returncode))
    with pytest.raises(ModelProcessDied, match=f"the model process of A exited unexpectedly, {name}"):
        raise crash.error.to_error()


def test_crash_is_attributed_to_the_second_lease_if_the_first_was_answered(harness: Harness) -> None:
    first, _ = harness.serve(lease(5), lease(6))
    harness.from_model(answer(first, 0))
    actions = harness.exit_process()
    assert to_broker(actions)[0] == m.LeaseDone(lease=5)
    assert [crash.lease for crash in crashes(actions)] == [6]


@pytest.mark.parametrize(
    "work",
    [GenerateWork(prompts=["x"], settings=GenerationParams()), DescribeWork()],
    ids=lambda work: type(work).__name__,
)
def test_lease_fully_answered_before_the_crash_is_done(harness: Harness, work: Work) -> None:
    (sent,) = harness.serve(m.Lease(lease=5, attempt=1, model=A, work=pack_work(work)))
    # The agent does not look at the answers, so texts may stand in for the description.
    harness.from_model(answered(sent.lease, {0: "X"}))
    assert harness.exit_process() == [SendToBroker(m.LeaseDone(lease=5))]


def test_crash_does_not_affect_a_lease_of_another_model(harness: Harness) -> None:
    harness.serve(lease(5, A))
    harness.receive_leases(lease(6, B))
    actions = harness.exit_process()
    assert [crash.lease for crash in crashes(actions)] == [5]
    assert actions[-1] == StartModelProcess(B, 2)


def test_idle_process_that_dies_is_restarted_for_the_next_lease(harness: Harness) -> None:
    idle(harness)
    assert harness.exit_process() == []
    assert harness.core.phase == "no model"
    assert harness.receive_leases(lease(2)) == [StartModelProcess(A, 2)]


# --- Processes without progress --------------------------------------------------------------------------------------


KILLED = [StopModelProcess(kill=True)]


def test_process_without_heartbeat_is_killed_once_and_its_lease_is_suspect(harness: Harness) -> None:
    harness.serve(lease(5))
    assert harness.advance(harness.settings.silence_s) == []
    assert harness.advance(0.1) == KILLED
    assert harness.advance(100.0) == []
    (crash,) = crashes(harness.exit_process(-9))
    assert "killed because it sent no heartbeat for 20 s" in crash.error.message


def test_idle_process_without_heartbeat_is_killed(harness: Harness) -> None:
    idle(harness)
    assert harness.advance(harness.settings.silence_s + 0.1) == KILLED
    assert harness.exit_process(-9) == []


def test_loading_process_has_a_longer_heartbeat_timeout(harness: Harness) -> None:
    loading(harness)
    assert harness.advance(harness.settings.loading_silence_s) == []
    assert harness.advance(0.1) == KILLED


def test_process_that_does_not_load_in_time_is_killed_despite_heartbeats() -> None:
    harness = Harness(AgentSettings(load_s=50))
    loading(harness)
    assert harness.run_without_progress(50) == []
    assert harness.run_without_progress(1) == KILLED


def test_process_without_progress_is_killed_despite_heartbeats() -> None:
    harness = Harness(AgentSettings(step_s=50))
    harness.serve(lease(5))
    assert harness.run_without_progress(50) == []
    assert harness.run_without_progress(1) == KILLED
    (crash,) = crashes(harness.exit_process(-9))
    assert "made no progress for 50 s while ready" in crash.error.message


SIGNS_OF_PROGRESS: list[Callable[[m.Lease], m.ModelProcessMessage]] = [
    lambda sent: m.ModelHeartbeat(steps=1),
    lambda sent: answer(sent, 0),
    lambda sent: m.PhaseChanged(phase="running"),
    lambda sent: m.LeaseNotice(lease=sent.lease, level="info", text="still there"),
]


@pytest.mark.parametrize("sign", SIGNS_OF_PROGRESS)
def test_any_progress_restarts_the_step_timeout(sign: Callable[[m.Lease], m.ModelProcessMessage]) -> None:
    harness = Harness(AgentSettings(step_s=50))
    (sent,) = harness.serve(lease(5, texts="ab"))
    assert harness.run_without_progress(40) == []
    harness.from_model(sign(sent))
    harness.now += 9  # a heartbeat with another step would count as progress
    assert harness.handle(Tick()) == []
    assert harness.core.phase != "ending"


def test_compilation_has_its_own_timeout() -> None:
    harness = Harness(AgentSettings(step_s=50, compile_s=500))
    harness.serve(lease(5))
    harness.from_model(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    assert harness.run_without_progress(500) == []
    assert harness.run_without_progress(1) == KILLED
    (crash,) = crashes(harness.exit_process(-9))
    assert "made no progress for 500 s while compiling 4 x 128" in crash.error.message


def test_idle_process_has_no_step_timeout() -> None:
    harness = Harness(AgentSettings(step_s=50))
    idle(harness)
    assert harness.run_without_progress(500) == []
    harness.receive_leases(lease(2))
    assert harness.run_without_progress(50) == []


def test_stall_of_the_agent_does_not_count_towards_timeouts(harness: Harness) -> None:
    harness.serve(lease(5))
    harness.now += 3_600
    assert harness.handle(Tick(stall_s=3_600)) == []


# --- Processes that die while loading --------------------------------------------------------------------------------


def test_process_that_dies_while_loading_is_restarted_after_growing_pauses() -> None:
    harness = Harness(AgentSettings(restart_delay_s=1.0, max_load_crashes=3))
    harness.receive_leases(lease(5), lease(6))
    assert harness.exit_process() == []
    assert "exited unexpectedly while loading, by SIGSEGV; restarting in 1 s" in harness.notices[-1].text
    assert harness.advance(0.9) == []
    assert harness.advance(0.1) == [StartModelProcess(A, 2)]
    assert harness.exit_process() == []
    assert harness.advance(1.9) == []
    assert harness.advance(0.1) == [StartModelProcess(A, 3)]
    assert [texts_of(sent) for sent in sent_leases(harness.from_model(LOADED))] == [["x"], ["x"]]


def test_model_whose_loading_always_crashes_fails_all_its_leases_with_the_last_trace() -> None:
    harness = Harness(AgentSettings(restart_delay_s=1.0, max_load_crashes=3))
    harness.receive_leases(lease(5), lease(6), lease(7, B))
    for pause_s in (1.0, 2.0):
        assert to_broker(harness.exit_process(-6)) == []
        harness.advance(pause_s)
    actions = harness.exit_process(-6, "line 3 of api.py")
    failures = [message for message in to_broker(actions) if isinstance(message, m.LeaseFailed)]
    assert [(failure.lease, failure.index) for failure in failures] == [(5, None), (6, None)]
    assert failures[0].error.traceback == "line 3 of api.py"
    with pytest.raises(ModelProcessDied, match="A exited unexpectedly 3 times while loading, the last time by SIGABRT"):
        raise failures[0].error.to_error()
    assert actions[-1] == StartModelProcess(B, 4)


def test_successful_load_resets_the_crash_count() -> None:
    harness = Harness(AgentSettings(restart_delay_s=1.0, max_load_crashes=2))
    for number in range(4):
        harness.receive_leases(lease(number))
        assert to_broker(harness.exit_process()) == []
        harness.advance(1.0)
        (sent,) = sent_leases(harness.from_model(LOADED))
        harness.from_model(done(sent))
        harness.exit_process()


def test_restart_pause_is_per_model(harness: Harness) -> None:
    harness.receive_leases(lease(5, A))
    harness.exit_process()
    harness.handle(LeaseCancelled(5))
    assert harness.receive_leases(lease(6, B)) == [StartModelProcess(B, 2)]


# --- The memory of the device ----------------------------------------------------------------------------------------


@pytest.fixture
def watching() -> Harness:
    harness = Harness()
    harness.core = AgentCore(harness.settings, watches_memory=True)
    return harness


def test_next_process_starts_when_the_memory_is_free(watching: Harness) -> None:
    ending(watching)
    assert watching.exit_process(0) == []
    assert watching.core.waits_for_memory
    assert watching.advance(1.0) == []
    assert watching.handle(MemoryFreed()) == [StartModelProcess(B, 2)]
    assert not watching.core.waits_for_memory


def test_waiting_for_free_memory_has_a_timeout(watching: Harness) -> None:
    ending(watching)
    watching.exit_process(0)
    assert watching.advance(watching.settings.memory_wait_s - 0.1) == []
    assert watching.advance(0.1) == [StartModelProcess(B, 2)]
    assert any("memory is still in use" in text for text in watching.logged)


# --- Draining --------------------------------------------------------------------------------------------------------


DRAIN_WORKER = SendToBroker(m.DrainWorker())


@pytest.mark.parametrize("phase", [absent, idle], ids=lambda phase: str(phase.__name__))
def test_idle_agent_stops_at_once(harness: Harness, phase: Callable[[Harness], None]) -> None:
    phase(harness)
    assert harness.handle(Drain()) == [DRAIN_WORKER, Stop()]


def test_loading_agent_returns_its_leases_and_stops(harness: Harness) -> None:
    loading(harness)
    assert harness.handle(Drain()) == [DRAIN_WORKER, SendToBroker(m.LeaseReturned(lease=1)), Stop()]


def test_draining_agent_finishes_the_running_lease_and_returns_the_others(harness: Harness) -> None:
    first, second = harness.serve(lease(5), lease(6))
    cancel = SendToModel(m.CancelLease(lease=second.lease))
    assert harness.handle(Drain()) == [DRAIN_WORKER, cancel, SendToBroker(m.LeaseReturned(lease=6))]
    assert harness.receive_leases(lease(7)) == [SendToBroker(m.LeaseReturned(lease=7))]
    assert answers(harness.from_model(answer(first, 0))) == [(5, [0], ["X"])]
    assert harness.from_model(done(first)) == [SendToBroker(m.LeaseDone(lease=5)), Stop()]


def test_draining_has_a_timeout(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5, texts="ab"))
    harness.handle(Drain())
    assert harness.advance(harness.settings.drain_s - 0.1) == []
    harness.from_model(answer(sent, 1))
    assert to_broker(harness.advance(0.1)) == [m.LeaseReturned(lease=5)]
    assert harness.advance(0.0) == [Stop()]


# --- Cancelled leases ------------------------------------------------------------------------------------------------


def test_cancelled_lease_is_dropped_and_cancelled_at_the_process(harness: Harness) -> None:
    first, second = harness.serve(lease(5), lease(6, texts="b"))
    assert harness.handle(LeaseCancelled(5)) == [SendToModel(m.CancelLease(lease=first.lease))]
    assert harness.from_model(answer(first, 0), done(first)) == []
    assert answers(harness.from_model(answer(second, 0))) == [(6, [0], ["B"])]


def test_lease_cancelled_before_it_is_sent_is_never_sent(harness: Harness) -> None:
    harness.receive_leases(lease(5), lease(6, texts="b"))
    assert harness.handle(LeaseCancelled(5)) == []
    assert [texts_of(sent) for sent in sent_leases(harness.from_model(LOADED))] == [["b"]]
    assert harness.handle(LeaseCancelled(5)) == []


def test_cancelled_lease_does_not_delay_a_model_switch(harness: Harness) -> None:
    busy(harness)
    harness.receive_leases(lease(2, B))
    assert harness.handle(LeaseCancelled(1))[1:] == [StopModelProcess(kill=False)]


# --- A model that cannot be loaded -----------------------------------------------------------------------------------


def test_load_failure_fails_all_leases_of_the_model(harness: Harness) -> None:
    harness.receive_leases(lease(1, A), lease(2, A), lease(3, B))
    actions = harness.from_model(LOAD_FAILED)
    assert to_broker(actions) == [m.LeaseFailed(lease=number, error=LOAD_FAILED.error) for number in (1, 2)]
    assert actions[-1] == StopModelProcess(kill=False)
    assert harness.exit_process(1) == [StartModelProcess(B, 2)]


def test_load_failure_is_retried_for_the_next_lease(harness: Harness) -> None:
    harness.receive_leases(lease(1, A))
    harness.from_model(LOAD_FAILED)
    assert harness.exit_process(1) == []
    assert harness.receive_leases(lease(2, A)) == [StartModelProcess(A, 2)]


# --- Revoked leases --------------------------------------------------------------------------------------------------


def test_messages_about_a_dropped_lease_are_ignored(harness: Harness) -> None:
    (sent,) = harness.serve(lease(5, texts="ab"))
    harness.handle(LeasesRevoked())
    notice = m.LeaseNotice(lease=sent.lease, level="info", text="late")
    assert harness.from_model(answer(sent, 0), notice, fail(sent, 1), done(sent)) == []
    assert notice not in harness.notices


def test_messages_about_a_dropped_lease_are_not_mistaken_for_the_lease_of_another_broker(harness: Harness) -> None:
    (before,) = harness.serve(lease(1, texts="ab"))
    harness.handle(LeasesRevoked())
    (after,) = sent_leases(harness.receive_leases(lease(1_000, texts="cd")))
    assert harness.from_model(answer(before, 0, 1), done(before)) == []
    assert answers(harness.from_model(answer(after, 0, 1))) == [(1_000, [0, 1], ["C", "D"])]


def test_model_stays_loaded_when_leases_are_revoked(harness: Harness) -> None:
    (sent,) = harness.serve(lease(1))
    assert harness.handle(LeasesRevoked()) == [SendToModel(m.CancelLease(lease=sent.lease))]
    assert len(sent_leases(harness.receive_leases(lease(2)))) == 1


def test_crash_after_leases_are_revoked_starts_no_process(harness: Harness) -> None:
    harness.serve(lease(1))
    harness.handle(LeasesRevoked())
    assert harness.exit_process() == []


# --- Random event sequences ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BrokerLease:
    """A lease at the broker, with its unanswered items."""

    lease: m.Lease
    unanswered: set[int]


@dataclass(eq=False)
class Process:
    """A model process with its queue of leases."""

    model: ModelSpec
    is_loaded: bool = False
    is_to_end: bool = False
    inbox: list[m.Lease] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)

    @property
    def unanswered(self) -> list[int]:
        """Return the items of the first lease that have no answer yet."""
        return [i for i in range(len(self.inbox[0].work)) if i not in self.answered] if self.inbox else []


class AgentUnderStress(RuleBasedStateMachine):
    """An AgentCore between model processes that die and a broker that restarts."""

    SETTINGS = AgentSettings(terminate_s=5, max_load_crashes=2, restart_delay_s=3, silence_s=1e6, loading_silence_s=1e6)

    def __init__(self) -> None:
        super().__init__()
        self.core = AgentCore(self.SETTINGS)
        self.now = 0.0
        self.outstanding: dict[int, BrokerLease] = {}
        self.process: Process | None = None
        self.leases = 0
        self.items = 0
        self.fault = ""
        self.at_work: str | None = None

    def handle(self, event: Event) -> None:
        for action in self.core.handle(event, self.now):
            match action:
                case StartModelProcess(model, _):
                    assert self.process is None
                    self.process = Process(model)
                case SendToModel(m.CancelLease(lease=number)):
                    assert self.process is not None
                    self.process.cancelled.add(number)
                case ForwardToModel(frame):
                    lease = decode(frame)
                    assert isinstance(lease, m.Lease)
                    assert self.process is not None
                    assert self.process.is_loaded
                    assert not self.process.is_to_end
                    assert lease.model == self.process.model
                    assert len(lease.work) > 0
                    self.process.inbox.append(lease)
                case StopModelProcess(kill=False):
                    assert self.process is not None
                    assert not self.process.is_to_end
                    inbox = [lease for lease in self.process.inbox if lease.lease not in self.process.cancelled]
                    at_work = {text for lease in inbox for text in texts_of(lease)}
                    assert all(at_work.isdisjoint(texts_of(work.lease)) for work in self.outstanding.values())
                    self.process.is_to_end = True
                case StopModelProcess(kill=True):
                    assert self.process is not None
                    assert self.process.is_to_end
                case SendToBroker(message):
                    self.check_broker_message(message)
                case ForwardToBroker(frame):
                    self.check_broker_message(decode(frame))

    def check_broker_message(self, message: ToBroker) -> None:
        assert not isinstance(message, m.DrainWorker)
        work = self.outstanding[message.lease]
        match message:
            case m.LeaseCrashed():
                assert work.unanswered
                assert self.at_work is None or self.at_work in texts_of(work.lease), (
                    "another lease than the running one is suspect"
                )
                del self.outstanding[message.lease]
            case m.LeaseReturned():
                assert work.unanswered
                del self.outstanding[message.lease]
            case m.LeaseAnswered():
                texts = unpack_answers("generate", message.answers)
                for index, text in zip(message.indices, texts, strict=True):
                    assert text == texts_of(work.lease)[index].upper()
                    work.unanswered.remove(index)
            case m.LeaseDone():
                assert not work.unanswered
                del self.outstanding[message.lease]
            case m.LeaseFailed():
                assert message.index is None or texts_of(work.lease)[message.index] == self.fault
                del self.outstanding[message.lease]

    # The broker

    @initialize()
    def first_lease(self) -> None:
        self.send_lease(A, 2)

    @precondition(lambda self: len(self.outstanding) < 3)
    @rule(model=st.sampled_from([A, B]), size=st.integers(1, 3))
    def send_lease(self, model: ModelSpec, size: int) -> None:
        self.leases += 1
        texts = [f"item-{self.items + i}" for i in range(size)]
        self.items += size
        lease = m.Lease(lease=self.leases, attempt=1, model=model, work=prompts(texts))
        self.outstanding[lease.lease] = BrokerLease(lease, set(range(size)))
        self.handle(received(lease))

    # The model process

    def send_from_process(self, message: m.ModelProcessMessage) -> None:
        self.handle(ModelMessageReceived(message, encode(message)))

    @precondition(lambda self: self.process is not None and (self.process.inbox or not self.process.is_loaded))
    @rule(data=st.data())
    def run_process(self, data: st.DataObject) -> None:
        assert self.process is not None
        if self.process.is_loaded and self.process.unanswered:
            some = st.lists(st.sampled_from(self.process.unanswered), min_size=1, unique=True)
            self.step_process(self.process, data.draw(some))
        else:
            self.step_process(self.process, [])

    def step_process(self, process: Process, indices: list[int]) -> None:
        """Load the model, answer these items of the first lease, or finish it."""
        if not process.is_loaded:
            process.is_loaded = True
            self.send_from_process(LOADED)
        elif indices:
            process.answered.update(indices)
            self.send_from_process(answer(process.inbox[0], *indices))
        else:
            process.answered.clear()
            self.send_from_process(done(process.inbox.pop(0)))

    def exit_process(self) -> None:
        process = self.process
        assert process is not None
        expected_action = {text for work in self.outstanding.values() for text in texts_of(work.lease)}
        waiting = [text for lease in process.inbox for text in texts_of(lease) if text in expected_action]
        done_with = [texts_of(process.inbox[0])[i] for i in process.answered] if process.inbox else []
        self.at_work = next((text for text in waiting if text not in done_with), None)
        self.process = None
        self.handle(ModelProcessExited(-11))
        self.at_work = None

    # Both

    @rule(what=st.sampled_from(["a crash", "a failure", "a new broker", "a cancel"]))
    def inject_fault(self, what: str) -> None:
        process = self.process
        if what == "a new broker":
            self.outstanding.clear()
            self.leases += 1_000
            self.handle(LeasesRevoked())
        elif what == "a cancel":
            if self.outstanding:
                number = min(self.outstanding)
                del self.outstanding[number]
                self.handle(LeaseCancelled(number))
        elif process is None:
            pass
        elif what == "a crash":
            self.exit_process()
        elif not process.is_loaded:
            self.send_from_process(LOAD_FAILED)
            self.exit_process()
        elif process.unanswered:
            index = process.unanswered[0]
            self.fault = texts_of(process.inbox[0])[index]
            process.answered.clear()
            self.send_from_process(fail(process.inbox.pop(0), index))

    @rule(seconds=st.floats(0.1, 10))
    def advance_time(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    @precondition(lambda self: len(self.outstanding) > 1)
    @rule()
    def run_until_all_answered(self) -> None:
        while self.outstanding or (self.process is not None and self.process.inbox):
            process = self.process
            if process is None:
                self.advance_time(3.0)
            elif process.is_to_end:
                self.exit_process()
            else:
                assert process.inbox or not process.is_loaded, "the agent has lost a lease"
                self.step_process(process, process.unanswered)
        assert not self.outstanding

    # Invariants

    @invariant()
    def leases_imply_a_process_or_a_load_crash(self) -> None:
        assert self.process is not None or not self.outstanding or self.core._load_crashes

    @invariant()
    def heartbeat_matches_the_process(self) -> None:
        assert self.core.model == (None if self.process is None else self.process.model)
        phases = {"no model"} if self.process is None else {"loading", "ready", "ending"}
        assert self.core.phase in phases


TestAgentUnderStress = AgentUnderStress.TestCase
TestAgentUnderStress.settings = settings(deadline=None, max_examples=250, stateful_step_count=30)


# --- Request arguments ------------------------------------------------------------------------------------------------


SEED_1, SEED_2 = (ModelSpec(tag="A", request_arguments=(("seed", str(seed)),)) for seed in (1, 2))
LOADED_IGNORING_SEEDS = m.ModelLoaded(seconds=1.5, request_arguments=("seed",))


def test_leases_with_other_ignored_arguments_go_to_the_same_process(harness: Harness) -> None:
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    assert [sent.lease for sent in sent_leases(harness.from_model(LOADED_IGNORING_SEEDS))] == [1, 2]
    assert harness.core.request_arguments == ("seed",)
    assert [sent.lease for sent in sent_leases(harness.receive_leases(lease(3, A)))] == [3]


def test_a_process_that_declares_nothing_is_replaced_for_other_arguments(harness: Harness) -> None:
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    (sent,) = sent_leases(harness.from_model(LOADED))
    assert sent.lease == 1
    assert harness.from_model(m.LeaseDone(lease=1))[-1] == StopModelProcess(kill=False)
    assert harness.exit_process(0) == [StartModelProcess(SEED_2, 2)]


def test_what_a_process_ignores_is_forgotten_when_it_ends(harness: Harness) -> None:
    harness.receive_leases(lease(1, SEED_1))
    harness.from_model(LOADED_IGNORING_SEEDS)
    harness.exit_process()
    assert harness.core.request_arguments == ()
    harness.receive_leases(lease(2, SEED_1), lease(3, SEED_2))
    assert [sent.lease for sent in sent_leases(harness.from_model(LOADED))] == [2]


def test_a_dead_process_returns_the_leases_of_all_its_arguments() -> None:
    harness = Harness(request_arguments=REQUEST_ARGUMENTS)
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    assert len(sent_leases(harness.from_model(LOADED_IGNORING_SEEDS))) == 2
    crashed, returned = harness.exit_process()
    assert isinstance(crashed, SendToBroker)
    assert isinstance(crashed.message, m.LeaseCrashed)
    assert returned == SendToBroker(m.LeaseReturned(lease=2))


def test_an_error_of_loading_fails_no_run_with_other_arguments() -> None:
    harness = Harness(request_arguments=REQUEST_ARGUMENTS)
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    failed, stopped = harness.from_model(LOAD_FAILED)
    assert isinstance(failed, SendToBroker)
    assert isinstance(failed.message, m.LeaseFailed)
    assert failed.message.lease == 1
    assert stopped == StopModelProcess(kill=False)
    assert harness.exit_process(1) == [StartModelProcess(SEED_2, 2)]
