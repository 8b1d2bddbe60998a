"""AgentCore when its model process dies, or makes no progress."""

from collections.abc import Callable

import pytest

from birdie_zmq.errors import ModelProcessDied
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import pack_work
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import DescribeWork, GenerateWork, GenerationParams, Work
from birdie_zmq.worker.core import AgentCore
from birdie_zmq.worker.events import LeaseCancelled, SendToBroker, StartModelProcess, StopModelProcess, Tick
from tests.worker.harness import (
    LOADED,
    A,
    B,
    Harness,
    answer,
    answered,
    crashes,
    done,
    idle,
    lease,
    loading,
    sent_leases,
    texts_of,
    to_broker,
)

# --- Crashes ---------------------------------------------------------------------------------------------------------


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


def test_exit_of_rank_0_is_reported_as_that_of_the_process_group() -> None:
    harness = Harness()
    harness.core = AgentCore(harness.settings, num_processes=2)
    harness.serve(lease(1))
    harness.exit_process()
    assert (
        "exited unexpectedly: by SIGSEGV (it is rank 0 of a process group of 2: when one rank ends, all end"
        in harness.logged[-1]
    )


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
