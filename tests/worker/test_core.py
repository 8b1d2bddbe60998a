"""The agent's behaviour, event by event and on a clock of plain numbers; then under whatever Hypothesis thinks of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from birdie_zmq.errors import ModelCallError, ModelProcessDied, UserModuleError
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import (
    ComputeCounters,
    DescribeWork,
    ErrorReport,
    ModelSpec,
    ProgressDelta,
    RollingWork,
    StepLimits,
    Texts,
    Work,
)
from birdie_zmq.worker.core import (
    Action,
    AgentCore,
    Drain,
    EndProcess,
    Event,
    LeaseCancelled,
    LeaseReceived,
    LeasesLost,
    Log,
    MemoryFreed,
    ProcessExited,
    ProcessSaid,
    StartProcess,
    Stop,
    TellBroker,
    TellProcess,
    Tick,
)

A, B = (ModelSpec(tag=tag) for tag in "AB")
LOADED = m.ModelLoaded(seconds=1.5)
REPORT = ErrorReport(code=ModelCallError.code, message="boom", traceback="line 3")
REFUSED = m.ModelLoadFailed(error=ErrorReport(code=UserModuleError.code, message="no such page", traceback="line 1"))


class Desk:
    """An agent, a clock that moves only when told to, and all that the agent does.

    What is said in a model process's name uses the lease as the process was told it.
    """

    def __init__(self, settings: AgentSettings | None = None) -> None:
        self.settings = settings or AgentSettings()
        self.agent = AgentCore(self.settings)
        self.now = 1_000.0
        self.logged: list[str] = []
        self.notices: list[m.LeaseNotice] = []

    def happens(self, event: Event) -> list[Action]:
        """What the agent does because of an event, but for what it tells a person."""
        actions: list[Action] = []
        for action in self.agent.handle(event, self.now):
            match action:
                case Log(_, text):
                    self.logged.append(text)
                case TellBroker(m.LeaseNotice() as notice):
                    self.notices.append(notice)
                case _:
                    actions.append(action)
        return actions

    def leased(self, *leases: m.Lease) -> list[Action]:
        return [action for lease in leases for action in self.happens(LeaseReceived(lease))]

    def said(self, *messages: m.ModelProcessMessage) -> list[Action]:
        return [action for message in messages for action in self.happens(ProcessSaid(message))]

    def exited(self, returncode: int = -11, trace: str | None = None) -> list[Action]:
        return self.happens(ProcessExited(returncode, trace))

    def lives(self, seconds: float) -> list[Action]:
        """Time passes second by second, in which the process beats and does not come on."""
        actions: list[Action] = []
        for _ in range(round(seconds)):
            self.now += 1.0
            actions += self.said(m.ModelHeartbeat(steps=0)) + self.happens(Tick())
        return actions

    def passes(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.happens(Tick())

    def serves(self, *leases: m.Lease) -> list[m.Lease]:
        """Get leases of one model to a process that has loaded it; what the process was told."""
        self.leased(*leases)
        return told(self.said(LOADED))


def lease(number: int, model: ModelSpec = A, texts: str = "x") -> m.Lease:
    """A lease with one item a letter."""
    return m.Lease(lease=number, attempt=1, model=model, work=RollingWork(texts=list(texts)))


def texts_of(lease: m.Lease) -> list[str]:
    assert isinstance(lease.work, RollingWork)
    return lease.work.texts


def answer(told: m.Lease, *indices: int) -> m.LeaseAnswered:
    """An answer to some items, each of which is its letter in upper case."""
    answers = Texts(texts=[texts_of(told)[i].upper() for i in indices])
    return m.LeaseAnswered(lease=told.lease, indices=np.array(indices, np.int32), answers=answers)


def done(told: m.Lease) -> m.LeaseDone:
    return m.LeaseDone(lease=told.lease)


def fail(told: m.Lease, index: int | None = None) -> m.LeaseFailed:
    return m.LeaseFailed(lease=told.lease, error=REPORT, index=index)


def told(actions: Sequence[Action]) -> list[m.Lease]:
    """The leases that the model process was told."""
    messages = [action.message for action in actions if isinstance(action, TellProcess)]
    return [message for message in messages if isinstance(message, m.Lease)]


ToBroker = m.LeaseMessage | m.LeaseCrashed | m.LeaseReturned | m.DrainWorker


def to_broker(actions: Sequence[Action]) -> list[ToBroker]:
    return [action.message for action in actions if isinstance(action, TellBroker)]


def answers(actions: Sequence[Action]) -> list[tuple[int, list[int], list[str]]]:
    """The answers that the broker is told: lease, indices, texts."""
    result = []
    for message in to_broker(actions):
        if isinstance(message, m.LeaseAnswered):
            assert isinstance(message.answers, Texts)
            result.append((message.lease, message.indices.tolist(), message.answers.texts))
    return result


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- The phases of the model process ---------------------------------------------------------------------------------


def test_the_life_of_a_model_process(desk: Desk) -> None:
    agent = desk.agent
    assert (agent.phase, agent.model) == ("no model", None)
    desk.leased(lease(1))
    assert (agent.phase, agent.model) == ("loading", A)
    (held,) = told(desk.said(LOADED))
    assert (agent.phase, agent.model) == ("ready", A)
    desk.said(done(held))
    desk.leased(lease(2, B))
    assert (agent.phase, agent.model) == ("ending", A)
    desk.exited(0)
    assert (agent.phase, agent.model) == ("loading", B)


def absent(desk: Desk) -> None:
    pass


def loading(desk: Desk) -> None:
    desk.leased(lease(1))


def idle(desk: Desk) -> None:
    (held,) = desk.serves(lease(1))
    desk.said(done(held))


def busy(desk: Desk) -> None:
    desk.serves(lease(1))


def ending(desk: Desk) -> None:
    idle(desk)
    desk.leased(lease(2, B))


AGAIN, OTHER = lease(9, A), lease(9, B)


@pytest.mark.parametrize(
    ("phase", "arrival", "expected"),
    [
        (absent, AGAIN, [StartProcess(A, 1)]),
        (loading, AGAIN, []),
        (loading, OTHER, []),
        (idle, AGAIN, [TellProcess(AGAIN)]),
        (idle, OTHER, [EndProcess(kill=False)]),
        (busy, AGAIN, [TellProcess(AGAIN)]),
        (busy, OTHER, []),
        (ending, AGAIN, []),
        (ending, OTHER, []),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_a_lease_leads_to(
    desk: Desk, phase: Callable[[Desk], None], arrival: m.Lease, expected: list[Action]
) -> None:
    phase(desk)
    actions = desk.leased(arrival)
    assert [type(action) for action in actions] == [type(action) for action in expected]
    for action, wanted in zip(actions, expected, strict=True):
        if isinstance(action, TellProcess) and isinstance(wanted, TellProcess):
            assert action.message == msgspec.structs.replace(wanted.message, lease=action.message.lease)
        else:
            assert action == wanted


def test_what_ended_processes_computed_stays_counted(desk: Desk) -> None:
    (held,) = desk.serves(lease(1))
    desk.said(m.ModelHeartbeat(steps=3, computed=ComputeCounters(tokens=30, padding=3, executables=1)), done(held))
    desk.leased(lease(2, B))
    desk.exited(0)
    assert desk.agent.computed == ComputeCounters(tokens=30, padding=3, executables=1)
    desk.said(LOADED, m.ModelHeartbeat(steps=1, computed=ComputeCounters(tokens=10, generated=5)))
    assert desk.agent.computed == ComputeCounters(tokens=40, padding=3, generated=5, executables=1)


def test_what_the_model_process_says_it_does_is_the_phase(desk: Desk) -> None:
    desk.serves(lease(1))
    assert desk.agent.phase == "ready"
    desk.said(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    assert desk.agent.phase == "compiling 4 x 128"
    desk.said(m.PhaseChanged(phase="running"))
    assert desk.agent.phase == "running"
    desk.exited()
    assert desk.agent.phase == "no model"


def test_starts_are_counted(desk: Desk) -> None:
    assert desk.serves(lease(1)) != []
    desk.exited()
    assert desk.leased(lease(2)) == [StartProcess(A, 2)]


def test_a_person_hears_of_the_load_and_its_end(desk: Desk) -> None:
    desk.serves(lease(1), lease(2))
    assert [(notice.lease, notice.text) for notice in desk.notices] == [(1, "loading A"), (1, "loaded A in 1.5 s")]
    assert [notice.text for notice in desk.notices] == desk.logged


def test_a_person_hears_which_model_has_to_go(desk: Desk) -> None:
    ending(desk)
    desk.exited(0)
    assert desk.notices[-1].text == "loading B, in place of A"
    desk.said(LOADED)
    desk.exited()
    desk.leased(lease(3, B))
    assert desk.notices[-1].text == "loading B"


def test_a_person_hears_of_a_compile_that_lasts_while_it_lasts(desk: Desk) -> None:
    desk.serves(lease(1))
    before = list(desk.notices)
    desk.said(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    desk.lives(1)
    desk.said(m.PhaseChanged(phase="running"))
    desk.lives(9)
    assert desk.notices == before, "nobody wonders about a short one"
    desk.said(m.PhaseChanged(phase="compiling", detail="8 x 256"))
    desk.lives(9)
    assert [(notice.lease, notice.text) for notice in desk.notices[len(before) :]] == [(1, "compiling 8 x 256 for A")]


def test_the_seconds_of_a_machine_that_stood_still_are_no_compiling(desk: Desk) -> None:
    desk.serves(lease(1))
    before = list(desk.notices)
    desk.said(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    desk.now += 3_600
    desk.happens(Tick(stall_s=3_599.0))
    assert desk.notices == before


def test_an_idle_model_stays(desk: Desk) -> None:
    (held,) = desk.serves(lease(1))
    desk.said(done(held))
    assert desk.lives(10_000) == []
    assert desk.agent.phase == "ready"


# --- Leases and their answers ----------------------------------------------------------------------------------------


def test_leases_wait_for_the_load_and_are_handed_over_in_their_order(desk: Desk) -> None:
    assert told(desk.leased(lease(1, texts="a"), lease(2, texts="b"))) == []
    assert [texts_of(held) for held in told(desk.said(LOADED))] == [["a"], ["b"]]


def test_a_lease_is_handed_over_as_it_came(desk: Desk) -> None:
    came = m.Lease(lease=5, attempt=3, model=A, work=RollingWork(texts=["a"]), limits=StepLimits(max_rows=2))
    (held,) = desk.serves(came)
    assert (held.attempt, held.model, held.work, held.limits) == (3, A, came.work, came.limits)


def test_a_lease_is_handed_over_once(desk: Desk) -> None:
    desk.serves(lease(1))
    assert desk.passes(1.0) == []
    assert len(told(desk.leased(lease(2)))) == 1


def test_answers_reach_the_broker_as_they_come(desk: Desk) -> None:
    (held,) = desk.serves(lease(5, texts="abc"))
    assert answers(desk.said(answer(held, 2, 0))) == [(5, [2, 0], ["C", "A"])]
    assert answers(desk.said(answer(held, 1))) == [(5, [1], ["B"])]
    assert to_broker(desk.said(done(held))) == [m.LeaseDone(lease=5)]


def test_a_failure_reaches_the_broker_and_ends_the_lease(desk: Desk) -> None:
    (held,) = desk.serves(lease(5, texts="abc"))
    assert desk.said(fail(held, index=2)) == [TellBroker(m.LeaseFailed(lease=5, error=REPORT, index=2))]
    assert desk.said(answer(held, 0), done(held), fail(held)) == []


def test_what_a_process_says_while_it_loads_reaches_who_waits_for_it_and_nobody_later(desk: Desk) -> None:
    desk.leased(lease(1, A), lease(2, B))
    desk.said(m.ModelNotice(level="info", text="waiting for all 2 processes"))
    assert [(notice.lease, notice.text) for notice in desk.notices][1:] == [(1, "waiting for all 2 processes")]
    desk.said(LOADED)
    before = len(desk.notices)
    desk.said(m.ModelNotice(level="info", text="late"))
    assert len(desk.notices) == before


def test_the_death_of_a_process_that_leads_a_group_is_said_to_be_that_of_all() -> None:
    desk = Desk()
    desk.agent = AgentCore(desk.settings, processes=2)
    desk.serves(lease(1))
    desk.exited()
    assert (
        "ended by itself: by SIGSEGV (it leads a group of 2 processes: when one of them ends, all end"
        in desk.logged[-1]
    )


def test_a_notice_reaches_the_broker(desk: Desk) -> None:
    (held,) = desk.serves(lease(5))
    desk.said(m.LeaseNotice(lease=held.lease, level="warning", text="slow", once=True))
    assert desk.notices[-1] == m.LeaseNotice(lease=5, level="warning", text="slow", once=True)


def test_what_was_computed_reaches_the_broker_with_the_answers(desk: Desk) -> None:
    (held,) = desk.serves(lease(5, texts="abc"))
    advance = ProgressDelta(computed=ComputeCounters(tokens=7), remaining=2)
    said = msgspec.structs.replace(answer(held, 1), progress=advance)
    assert to_broker(desk.said(said)) == [msgspec.structs.replace(said, lease=5)]
    assert to_broker(desk.said(m.LeaseProgressed(lease=held.lease, progress=advance))) == [
        m.LeaseProgressed(lease=5, progress=advance)
    ]


# --- Another model ---------------------------------------------------------------------------------------------------


def test_a_process_ends_only_when_nothing_of_its_model_is_left(desk: Desk) -> None:
    first, second = desk.serves(lease(1, A), lease(2, A))
    assert desk.leased(lease(3, B)) == []
    assert desk.said(done(first)) == [TellBroker(m.LeaseDone(lease=1))]
    assert desk.said(done(second)) == [TellBroker(m.LeaseDone(lease=2)), EndProcess(kill=False)]


def test_a_new_process_starts_only_after_the_old_one_is_gone(desk: Desk) -> None:
    ending(desk)
    assert desk.passes(0.1) == []
    assert desk.exited(-15) == [StartProcess(B, 2)]
    assert [texts_of(held) for held in told(desk.said(LOADED))] == [["x"]]


def test_a_lease_of_the_loaded_model_is_served_before_the_model_changes(desk: Desk) -> None:
    (first,) = desk.serves(lease(1, A))
    desk.leased(lease(2, B))
    (third,) = told(desk.leased(lease(3, A)))
    assert to_broker(desk.said(done(first))) == [m.LeaseDone(lease=1)]
    assert desk.said(done(third)) == [TellBroker(m.LeaseDone(lease=3)), EndProcess(kill=False)]


def test_more_and_more_leases_of_the_loaded_model_do_not_keep_another_model_waiting_for_ever(desk: Desk) -> None:
    (first,) = desk.serves(lease(1, A))
    desk.leased(lease(2, B))
    waiting = told(desk.leased(lease(3, A)))
    desk.said(done(first))
    waiting += told(desk.leased(lease(4, A)))
    actions = desk.said(*map(done, waiting))
    assert actions[-1] == EndProcess(kill=False)


def test_a_lease_of_the_old_model_waits_while_its_process_ends(desk: Desk) -> None:
    ending(desk)
    desk.leased(lease(3, A, texts="again"))
    assert desk.exited(0) == [StartProcess(B, 2)]
    (held,) = told(desk.said(LOADED))
    assert held.model == B
    assert desk.said(done(held))[1:] == [EndProcess(kill=False)]
    assert desk.exited(0) == [StartProcess(A, 3)]


def test_the_same_tag_with_other_arguments_is_another_model(desk: Desk) -> None:
    idle(desk)
    assert desk.leased(lease(2, ModelSpec(tag="A", arguments='{"seed": 1}'))) == [EndProcess(kill=False)]


def test_a_load_that_nobody_waits_for_any_more_is_ended(desk: Desk) -> None:
    loading(desk)
    desk.happens(LeasesLost())
    assert desk.leased(lease(2, B)) == [EndProcess(kill=False)]


def test_a_process_that_does_not_end_in_time_is_killed_once(desk: Desk) -> None:
    ending(desk)
    assert desk.passes(desk.settings.terminate_s - 0.1) == []
    assert desk.passes(0.1) == [EndProcess(kill=True)]
    assert desk.passes(10 * desk.settings.terminate_s) == []
    assert desk.exited(-9) == [StartProcess(B, 2)]


def test_an_exit_that_was_asked_for_is_no_crash(desk: Desk) -> None:
    ending(desk)
    desk.leased(lease(3, A))
    assert desk.exited(-15) == [StartProcess(B, 2)]
    assert not any("ended by itself" in text for text in desk.logged)


def test_a_process_that_ends_in_time_is_not_killed(desk: Desk) -> None:
    ending(desk)
    desk.exited(0)
    assert desk.passes(10 * desk.settings.terminate_s) == []


@pytest.mark.parametrize("last_words", [LOADED, REFUSED], ids=["loaded", "refused"])
def test_a_process_that_is_to_end_changes_nothing_by_what_it_still_says(
    desk: Desk, last_words: m.ModelProcessMessage
) -> None:
    loading(desk)
    desk.happens(LeasesLost())
    desk.leased(lease(2, B))
    desk.now += desk.settings.terminate_s - 0.1
    assert desk.said(last_words) == []
    assert desk.agent.phase == "ending"
    assert desk.passes(0.1) == [EndProcess(kill=True)]


# --- Crashes ---------------------------------------------------------------------------------------------------------


def crashes(actions: Sequence[Action]) -> list[m.LeaseCrashed]:
    return [message for message in to_broker(actions) if isinstance(message, m.LeaseCrashed)]


def test_the_lease_at_which_the_process_dies_is_given_back_as_its_crash_and_the_others_as_they_are(desk: Desk) -> None:
    desk.serves(lease(5, texts="ab"), lease(6, texts="c"))
    actions = desk.exited(trace="line 7")
    (crash,) = crashes(actions)
    assert (crash.lease, crash.error.traceback) == (5, "line 7")
    assert to_broker(actions)[1:] == [m.LeaseReturned(lease=6)]
    assert desk.agent.phase == "no model"


@pytest.mark.parametrize(
    ("returncode", "name"),
    [(-11, "by SIGSEGV"), (-9, "by SIGKILL .*out of memory"), (-100, "by signal 100"), (3, "with exit status 3")],
)
def test_a_crash_says_how_the_process_died(desk: Desk, returncode: int, name: str) -> None:
    desk.serves(lease(5))
    (crash,) = crashes(desk.exited(returncode))
    with pytest.raises(ModelProcessDied, match=f"the model A ended by itself, {name}"):
        raise crash.error.to_error()


def test_a_crash_is_the_second_leases_if_the_first_was_answered(desk: Desk) -> None:
    first, _ = desk.serves(lease(5), lease(6))
    desk.said(answer(first, 0))
    actions = desk.exited()
    assert to_broker(actions)[0] == m.LeaseDone(lease=5)
    assert [crash.lease for crash in crashes(actions)] == [6]


@pytest.mark.parametrize("work", [RollingWork(texts=["x"]), DescribeWork()], ids=lambda work: type(work).__name__)
def test_a_lease_whose_last_answer_came_before_the_crash_is_done(desk: Desk, work: Work) -> None:
    (held,) = desk.serves(m.Lease(lease=5, attempt=1, model=A, work=work))
    # What stands in for the description does not matter to the agent.
    desk.said(m.LeaseAnswered(lease=held.lease, indices=np.zeros(1, np.int32), answers=Texts(texts=["X"])))
    assert desk.exited() == [TellBroker(m.LeaseDone(lease=5))]


def test_a_lease_for_another_model_survives_a_crash(desk: Desk) -> None:
    desk.serves(lease(5, A))
    desk.leased(lease(6, B))
    actions = desk.exited()
    assert [crash.lease for crash in crashes(actions)] == [5]
    assert actions[-1] == StartProcess(B, 2)


def test_an_idle_process_that_dies_is_started_again_for_the_next_lease(desk: Desk) -> None:
    idle(desk)
    assert desk.exited() == []
    assert desk.agent.phase == "no model"
    assert desk.leased(lease(2)) == [StartProcess(A, 2)]


# --- Processes that do not come on -----------------------------------------------------------------------------------


KILLED = [EndProcess(kill=True)]


def test_a_process_that_gives_no_sign_of_life_is_killed_once_and_its_lease_is_suspected(desk: Desk) -> None:
    desk.serves(lease(5))
    assert desk.passes(desk.settings.silence_s) == []
    assert desk.passes(0.1) == KILLED
    assert desk.passes(100.0) == []
    (crash,) = crashes(desk.exited(-9))
    assert "killed because it gave no sign of life for 20 s" in crash.error.message


def test_an_idle_process_is_watched_too(desk: Desk) -> None:
    idle(desk)
    assert desk.passes(desk.settings.silence_s + 0.1) == KILLED
    assert desk.exited(-9) == []


def test_a_process_that_loads_may_be_silent_for_longer(desk: Desk) -> None:
    loading(desk)
    assert desk.passes(desk.settings.loading_silence_s) == []
    assert desk.passes(0.1) == KILLED


def test_a_process_that_beats_but_does_not_load_in_time_is_killed() -> None:
    desk = Desk(AgentSettings(load_s=50))
    loading(desk)
    assert desk.lives(50) == []
    assert desk.lives(1) == KILLED


def test_a_process_that_beats_but_does_not_come_on_is_killed() -> None:
    desk = Desk(AgentSettings(step_s=50))
    desk.serves(lease(5))
    assert desk.lives(50) == []
    assert desk.lives(1) == KILLED
    (crash,) = crashes(desk.exited(-9))
    assert "did not come on for 50 s while ready" in crash.error.message


SIGNS_OF_PROGRESS: list[Callable[[m.Lease], m.ModelProcessMessage]] = [
    lambda held: m.ModelHeartbeat(steps=1),
    lambda held: answer(held, 0),
    lambda held: m.PhaseChanged(phase="running"),
    lambda held: m.LeaseNotice(lease=held.lease, level="info", text="still there"),
]


@pytest.mark.parametrize("sign", SIGNS_OF_PROGRESS)
def test_whatever_a_process_gets_done_gives_it_more_time(sign: Callable[[m.Lease], m.ModelProcessMessage]) -> None:
    desk = Desk(AgentSettings(step_s=50))
    (held,) = desk.serves(lease(5, texts="ab"))
    assert desk.lives(40) == []
    desk.said(sign(held))
    desk.now += 9  # the beat of another step would be one more sign
    assert desk.happens(Tick()) == []
    assert desk.agent.phase != "ending"


def test_a_compile_has_a_deadline_of_its_own() -> None:
    desk = Desk(AgentSettings(step_s=50, compile_s=500))
    desk.serves(lease(5))
    desk.said(m.PhaseChanged(phase="compiling", detail="4 x 128"))
    assert desk.lives(500) == []
    assert desk.lives(1) == KILLED
    (crash,) = crashes(desk.exited(-9))
    assert "did not come on for 500 s while compiling 4 x 128" in crash.error.message


def test_a_process_that_has_nothing_to_do_need_not_come_on() -> None:
    desk = Desk(AgentSettings(step_s=50))
    idle(desk)
    assert desk.lives(500) == []
    desk.leased(lease(2))
    assert desk.lives(50) == []


def test_a_process_is_not_blamed_for_the_time_in_which_the_agent_was_stopped(desk: Desk) -> None:
    desk.serves(lease(5))
    desk.now += 3_600
    assert desk.happens(Tick(stall_s=3_600)) == []


# --- Processes that die while they load ------------------------------------------------------------------------------


def test_a_process_that_dies_while_it_loads_is_started_again_after_a_pause_that_grows() -> None:
    desk = Desk(AgentSettings(restart_s=1.0, max_load_crashes=3))
    desk.leased(lease(5), lease(6))
    assert desk.exited() == []
    assert "ended by itself, by SIGSEGV; the next one starts in 1 s" in desk.notices[-1].text
    assert desk.passes(0.9) == []
    assert desk.passes(0.1) == [StartProcess(A, 2)]
    assert desk.exited() == []
    assert desk.passes(1.9) == []
    assert desk.passes(0.1) == [StartProcess(A, 3)]
    assert [texts_of(held) for held in told(desk.said(LOADED))] == [["x"], ["x"]]


def test_a_model_that_kills_every_process_that_loads_it_fails_all_its_leases_with_the_last_trace() -> None:
    desk = Desk(AgentSettings(restart_s=1.0, max_load_crashes=3))
    desk.leased(lease(5), lease(6), lease(7, B))
    for pause_s in (1.0, 2.0):
        assert to_broker(desk.exited(-6)) == []
        desk.passes(pause_s)
    actions = desk.exited(-6, "line 3 of api.py")
    failures = [message for message in to_broker(actions) if isinstance(message, m.LeaseFailed)]
    assert [(failure.lease, failure.index) for failure in failures] == [(5, None), (6, None)]
    assert failures[0].error.traceback == "line 3 of api.py"
    with pytest.raises(
        ModelProcessDied, match="A ended by itself 3 times while it was loading, the last time by SIGABRT"
    ):
        raise failures[0].error.to_error()
    assert actions[-1] == StartProcess(B, 4)


def test_a_load_that_succeeds_begins_the_count_anew() -> None:
    desk = Desk(AgentSettings(restart_s=1.0, max_load_crashes=2))
    for number in range(4):
        desk.leased(lease(number))
        assert to_broker(desk.exited()) == []
        desk.passes(1.0)
        (held,) = told(desk.said(LOADED))
        desk.said(done(held))
        desk.exited()


def test_the_pause_of_one_model_is_not_anothers(desk: Desk) -> None:
    desk.leased(lease(5, A))
    desk.exited()
    desk.happens(LeaseCancelled(5))
    assert desk.leased(lease(6, B)) == [StartProcess(B, 2)]


# --- The memory of the device ----------------------------------------------------------------------------------------


@pytest.fixture
def watching() -> Desk:
    desk = Desk()
    desk.agent = AgentCore(desk.settings, watches_memory=True)
    return desk


def test_the_next_process_starts_when_the_memory_is_free(watching: Desk) -> None:
    ending(watching)
    assert watching.exited(0) == []
    assert watching.agent.waits_for_memory
    assert watching.passes(1.0) == []
    assert watching.happens(MemoryFreed()) == [StartProcess(B, 2)]
    assert not watching.agent.waits_for_memory


def test_memory_that_does_not_come_back_is_not_waited_for_for_ever(watching: Desk) -> None:
    ending(watching)
    watching.exited(0)
    assert watching.passes(watching.settings.free_s - 0.1) == []
    assert watching.passes(0.1) == [StartProcess(B, 2)]
    assert any("memory is not free" in text for text in watching.logged)


# --- Stopping in good order ------------------------------------------------------------------------------------------


DRAINS = TellBroker(m.DrainWorker())


@pytest.mark.parametrize("phase", [absent, idle], ids=lambda phase: str(phase.__name__))
def test_an_agent_with_nothing_to_do_stops_at_once(desk: Desk, phase: Callable[[Desk], None]) -> None:
    phase(desk)
    assert desk.happens(Drain()) == [DRAINS, Stop()]


def test_an_agent_that_loads_gives_everything_back_and_stops(desk: Desk) -> None:
    loading(desk)
    assert desk.happens(Drain()) == [DRAINS, TellBroker(m.LeaseReturned(lease=1)), Stop()]


def test_an_agent_finishes_the_lease_at_work_and_gives_back_the_others(desk: Desk) -> None:
    first, second = desk.serves(lease(5), lease(6))
    cancel = TellProcess(m.CancelLease(lease=second.lease))
    assert desk.happens(Drain()) == [DRAINS, cancel, TellBroker(m.LeaseReturned(lease=6))]
    assert desk.leased(lease(7)) == [TellBroker(m.LeaseReturned(lease=7))]
    assert answers(desk.said(answer(first, 0))) == [(5, [0], ["X"])]
    assert desk.said(done(first)) == [TellBroker(m.LeaseDone(lease=5)), Stop()]


def test_an_agent_waits_no_longer_than_it_said(desk: Desk) -> None:
    (held,) = desk.serves(lease(5, texts="ab"))
    desk.happens(Drain())
    assert desk.passes(desk.settings.drain_s - 0.1) == []
    desk.said(answer(held, 1))
    assert to_broker(desk.passes(0.1)) == [m.LeaseReturned(lease=5)]
    assert desk.passes(0.0) == [Stop()]


# --- Leases that nobody waits for ------------------------------------------------------------------------------------


def test_a_cancelled_lease_is_forgotten_and_the_process_told(desk: Desk) -> None:
    first, second = desk.serves(lease(5), lease(6, texts="b"))
    assert desk.happens(LeaseCancelled(5)) == [TellProcess(m.CancelLease(lease=first.lease))]
    assert desk.said(answer(first, 0), done(first)) == []
    assert answers(desk.said(answer(second, 0))) == [(6, [0], ["B"])]


def test_a_lease_is_cancelled_before_the_process_has_it(desk: Desk) -> None:
    desk.leased(lease(5), lease(6, texts="b"))
    assert desk.happens(LeaseCancelled(5)) == []
    assert [texts_of(held) for held in told(desk.said(LOADED))] == [["b"]]
    assert desk.happens(LeaseCancelled(5)) == []


def test_a_cancelled_lease_does_not_keep_another_model_waiting(desk: Desk) -> None:
    busy(desk)
    desk.leased(lease(2, B))
    assert desk.happens(LeaseCancelled(1))[1:] == [EndProcess(kill=False)]


# --- A model that cannot be loaded -----------------------------------------------------------------------------------


def test_a_refused_model_fails_all_its_leases_with_its_error(desk: Desk) -> None:
    desk.leased(lease(1, A), lease(2, A), lease(3, B))
    actions = desk.said(REFUSED)
    assert to_broker(actions) == [m.LeaseFailed(lease=number, error=REFUSED.error) for number in (1, 2)]
    assert actions[-1] == EndProcess(kill=False)
    assert desk.exited(1) == [StartProcess(B, 2)]


def test_a_refused_model_is_tried_again_for_the_next_lease(desk: Desk) -> None:
    desk.leased(lease(1, A))
    desk.said(REFUSED)
    assert desk.exited(1) == []
    assert desk.leased(lease(2, A)) == [StartProcess(A, 2)]


# --- Leases that are the broker's no more ----------------------------------------------------------------------------


def test_what_is_said_of_a_forgotten_lease_is_ignored(desk: Desk) -> None:
    (held,) = desk.serves(lease(5, texts="ab"))
    desk.happens(LeasesLost())
    notice = m.LeaseNotice(lease=held.lease, level="info", text="late")
    assert desk.said(answer(held, 0), notice, fail(held, 1), done(held)) == []
    assert notice not in desk.notices


def test_what_is_said_of_a_forgotten_lease_is_not_taken_for_a_new_one_of_its_number(desk: Desk) -> None:
    (before,) = desk.serves(lease(1, texts="ab"))
    desk.happens(LeasesLost())
    (after,) = told(desk.leased(lease(1, texts="cd")))
    assert desk.said(answer(before, 0, 1), done(before)) == []
    assert answers(desk.said(answer(after, 0, 1))) == [(1, [0, 1], ["C", "D"])]


def test_a_model_stays_loaded_when_the_leases_are_lost(desk: Desk) -> None:
    (held,) = desk.serves(lease(1))
    assert desk.happens(LeasesLost()) == [TellProcess(m.CancelLease(lease=held.lease))]
    assert len(told(desk.leased(lease(2)))) == 1


def test_a_crash_after_the_leases_are_lost_starts_nothing(desk: Desk) -> None:
    desk.serves(lease(1))
    desk.happens(LeasesLost())
    assert desk.exited() == []


# --- Whatever happens ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class HandedOut:
    """A lease as the broker sees it: what is not answered yet."""

    lease: m.Lease
    unanswered: set[int]


@dataclass(eq=False)
class Process:
    """A model process: what it was told and has not done, first in, first out."""

    model: ModelSpec
    is_loaded: bool = False
    is_to_end: bool = False
    inbox: list[m.Lease] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)

    @property
    def unanswered(self) -> list[int]:
        """The items of the first lease that have no answer yet."""
        return [i for i in range(len(self.inbox[0].work)) if i not in self.answered] if self.inbox else []


class AgentUnderStress(RuleBasedStateMachine):
    """An agent between a broker that is restarted, and so numbers its leases anew, and model processes that die."""

    SETTINGS = AgentSettings(terminate_s=5, max_load_crashes=2, restart_s=3, silence_s=1e6, loading_silence_s=1e6)

    def __init__(self) -> None:
        super().__init__()
        self.agent = AgentCore(self.SETTINGS)
        self.now = 0.0
        self.held: dict[int, HandedOut] = {}
        self.process: Process | None = None
        self.leases = 0
        self.items = 0
        self.fault = ""
        self.at_work: str | None = None

    def happens(self, event: Event) -> None:
        for action in self.agent.handle(event, self.now):
            match action:
                case StartProcess(model, _):
                    assert self.process is None
                    self.process = Process(model)
                case TellProcess(m.CancelLease(lease=number)):
                    assert self.process is not None
                    self.process.cancelled.add(number)
                case TellProcess(m.Lease() as lease):
                    assert self.process is not None
                    assert self.process.is_loaded
                    assert not self.process.is_to_end
                    assert lease.model == self.process.model
                    assert len(lease.work) > 0
                    self.process.inbox.append(lease)
                case EndProcess(kill=False):
                    assert self.process is not None
                    assert not self.process.is_to_end
                    inbox = [lease for lease in self.process.inbox if lease.lease not in self.process.cancelled]
                    at_work = {text for lease in inbox for text in texts_of(lease)}
                    assert all(at_work.isdisjoint(texts_of(work.lease)) for work in self.held.values())
                    self.process.is_to_end = True
                case EndProcess(kill=True):
                    assert self.process is not None
                    assert self.process.is_to_end
                case TellBroker(message):
                    self.broker_is_told(message)

    def broker_is_told(self, message: ToBroker) -> None:
        assert not isinstance(message, m.DrainWorker)
        work = self.held[message.lease]
        match message:
            case m.LeaseCrashed():
                assert work.unanswered
                assert self.at_work is None or self.at_work in texts_of(work.lease), "another lease is suspected"
                del self.held[message.lease]
            case m.LeaseReturned():
                assert work.unanswered
                del self.held[message.lease]
            case m.LeaseAnswered():
                assert isinstance(message.answers, Texts)
                for index, text in zip(message.indices.tolist(), message.answers.texts, strict=True):
                    assert text == texts_of(work.lease)[index].upper()
                    work.unanswered.remove(index)
            case m.LeaseDone():
                assert not work.unanswered
                del self.held[message.lease]
            case m.LeaseFailed():
                assert message.index is None or texts_of(work.lease)[message.index] == self.fault
                del self.held[message.lease]

    # The broker

    @initialize()
    def somebody_asks(self) -> None:
        self.a_lease_comes(A, 2)

    @precondition(lambda self: len(self.held) < 3)
    @rule(model=st.sampled_from([A, B]), size=st.integers(1, 3))
    def a_lease_comes(self, model: ModelSpec, size: int) -> None:
        self.leases += 1
        texts = [f"item-{self.items + i}" for i in range(size)]
        self.items += size
        lease = m.Lease(lease=self.leases, attempt=1, model=model, work=RollingWork(texts=texts))
        self.held[lease.lease] = HandedOut(lease, set(range(size)))
        self.happens(LeaseReceived(lease))

    # The model process

    def process_says(self, message: m.ModelProcessMessage) -> None:
        self.happens(ProcessSaid(message))

    @precondition(lambda self: self.process is not None and (self.process.inbox or not self.process.is_loaded))
    @rule(data=st.data())
    def a_process_goes_on(self, data: st.DataObject) -> None:
        assert self.process is not None
        if self.process.is_loaded and self.process.unanswered:
            some = st.lists(st.sampled_from(self.process.unanswered), min_size=1, unique=True)
            self.process_takes_a_step(self.process, data.draw(some))
        else:
            self.process_takes_a_step(self.process, [])

    def process_takes_a_step(self, process: Process, indices: list[int]) -> None:
        """Load, or answer these items of the first lease, or be done with it."""
        if not process.is_loaded:
            process.is_loaded = True
            self.process_says(LOADED)
        elif indices:
            process.answered.update(indices)
            self.process_says(answer(process.inbox[0], *indices))
        else:
            process.answered.clear()
            self.process_says(done(process.inbox.pop(0)))

    def the_process_exits(self) -> None:
        process = self.process
        assert process is not None
        wanted = {text for work in self.held.values() for text in texts_of(work.lease)}
        waiting = [text for lease in process.inbox for text in texts_of(lease) if text in wanted]
        done_with = [texts_of(process.inbox[0])[i] for i in process.answered] if process.inbox else []
        self.at_work = next((text for text in waiting if text not in done_with), None)
        self.process = None
        self.happens(ProcessExited(-11))
        self.at_work = None

    # Both

    @rule(what=st.sampled_from(["a crash", "a failure", "a new broker", "a cancel"]))
    def something_goes_wrong(self, what: str) -> None:
        process = self.process
        if what == "a new broker":
            self.held.clear()
            self.leases = 0
            self.happens(LeasesLost())
        elif what == "a cancel":
            if self.held:
                number = min(self.held)
                del self.held[number]
                self.happens(LeaseCancelled(number))
        elif process is None:
            pass
        elif what == "a crash":
            self.the_process_exits()
        elif not process.is_loaded:
            self.process_says(REFUSED)
            self.the_process_exits()
        elif process.unanswered:
            index = process.unanswered[0]
            self.fault = texts_of(process.inbox[0])[index]
            process.answered.clear()
            self.process_says(fail(process.inbox.pop(0), index))

    @rule(seconds=st.floats(0.1, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.happens(Tick())

    @precondition(lambda self: len(self.held) > 1)
    @rule()
    def the_process_behaves_until_all_is_answered(self) -> None:
        while self.held or (self.process is not None and self.process.inbox):
            process = self.process
            if process is None:
                self.time_passes(3.0)
            elif process.is_to_end:
                self.the_process_exits()
            else:
                assert process.inbox or not process.is_loaded, "the agent has forgotten a lease"
                self.process_takes_a_step(process, process.unanswered)
        assert not self.held

    # What always holds

    @invariant()
    def leases_have_a_process_or_one_that_died_while_it_was_loading(self) -> None:
        assert self.process is not None or not self.held or self.agent._load_crashes

    @invariant()
    def the_heartbeat_tells_the_truth(self) -> None:
        assert self.agent.model == (None if self.process is None else self.process.model)
        phases = {"no model"} if self.process is None else {"loading", "ready", "ending"}
        assert self.agent.phase in phases


TestAgentUnderStress = AgentUnderStress.TestCase
TestAgentUnderStress.settings = settings(deadline=None, max_examples=250, stateful_step_count=30)
