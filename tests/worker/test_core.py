"""AgentCore, event by event with a manual clock: phases, leases and their answers, draining."""

from collections.abc import Callable

import pytest

from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from birdie_zmq.types import ComputeCounters, StepLimits
from birdie_zmq.worker.events import (
    Action,
    Drain,
    ForwardToBroker,
    ForwardToModel,
    LeaseCancelled,
    LeasesRevoked,
    SendToBroker,
    SendToModel,
    StartModelProcess,
    Stop,
    StopModelProcess,
    Tick,
)
from tests.worker.harness import (
    LOAD_FAILED,
    LOADED,
    REPORT,
    A,
    B,
    Harness,
    absent,
    answer,
    answered,
    answers,
    busy,
    done,
    ending,
    fail,
    idle,
    lease,
    loading,
    prompts,
    sent_leases,
    texts_of,
    to_broker,
)

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
