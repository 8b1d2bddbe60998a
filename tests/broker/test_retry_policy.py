"""Retries of leases whose worker or model process died."""

from collections.abc import Callable

import pytest

from birdie_zmq.broker.events import Tick, Unreachable
from birdie_zmq.errors import ModelCallError, ModelProcessDied, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import pack_work
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import DescribeWork
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_WORKER,
    WORKER,
    A,
    B,
    BrokerHarness,
    FromPeer,
    answer,
    crash,
    fail,
    finish,
    name_of,
    register,
    submit,
    text_answers,
    texts_of,
)

# --- Workers that disconnect ------------------------------------------------------------------------------------------


def worker_is_unreachable(harness: BrokerHarness) -> None:
    harness.handle(Unreachable(WORKER))


def worker_times_out(harness: BrokerHarness) -> None:
    harness.send(CLIENT, m.Ping())
    harness.advance(harness.settings.worker_timeout_s + 0.1)


def worker_registers_again(harness: BrokerHarness) -> None:
    harness.send(WORKER, register())


def worker_shuts_down(harness: BrokerHarness) -> None:
    harness.send(WORKER, m.CloseWorker())


Fault = Callable[[BrokerHarness], None]
crashes = pytest.mark.parametrize("fault", [worker_is_unreachable, worker_times_out, worker_registers_again])
disconnects = pytest.mark.parametrize(
    "fault", [worker_is_unreachable, worker_times_out, worker_registers_again, worker_shuts_down]
)


def replace_worker(harness: BrokerHarness) -> bytes:
    """Replace the first worker by another, which gets its leases."""
    harness.send(WORKER, m.CloseWorker())
    harness.send(OTHER_WORKER, register(capacity=9))
    return OTHER_WORKER


@disconnects
def test_leases_of_a_disconnected_worker_are_leased_again(harness: BrokerHarness, fault: Fault) -> None:
    harness.send(CLIENT, submit(5, texts="ab"))
    first = harness.lease()
    fault(harness)
    lease = harness.lease(replace_worker(harness))
    assert lease.lease != first.lease
    assert lease.work == first.work
    harness.send(OTHER_WORKER, *finish(lease))
    assert harness.answers() == [(5, [0, 1], ["A", "B"])]


@disconnects
def test_only_unanswered_items_are_leased_again_and_keep_their_indices(harness: BrokerHarness, fault: Fault) -> None:
    harness.send(CLIENT, submit(5, texts="abcd"))
    harness.send(WORKER, answer(harness.lease(), 2, 0))
    fault(harness)
    lease = harness.lease(replace_worker(harness))
    assert texts_of(lease) == ["b", "d"]
    harness.send(OTHER_WORKER, answer(lease, 1), answer(lease, 0), m.LeaseDone(lease=lease.lease))
    assert harness.answers() == [(5, [2, 0], ["C", "A"]), (5, [3], ["D"]), (5, [1], ["B"])]
    assert harness.received(CLIENT, m.BatchFailed) == []


def test_a_failed_item_of_a_retry_has_its_index_in_the_batch(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="abcd"))
    harness.send(WORKER, answer(harness.lease(), 2, 0))
    harness.handle(Unreachable(WORKER))
    harness.send(OTHER_WORKER, register())
    harness.send(OTHER_WORKER, fail(harness.lease(OTHER_WORKER), index=1))
    ((batch, index, error),) = harness.item_failures()
    assert (batch, index, type(error)) == (5, 3, ModelCallError)


def test_retried_batches_come_first_and_keep_their_order() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, OPEN_SESSION, *(submit(i, texts=text) for i, text in enumerate("abcd")))
    harness.handle(Unreachable(WORKER))
    harness.send(OTHER_WORKER, register(capacity=4))
    suspect = harness.lease(OTHER_WORKER)
    harness.send(OTHER_WORKER, *finish(suspect))
    assert [texts_of(lease) for lease in [suspect, *harness.leases(OTHER_WORKER)]] == [["a"], ["b"], ["c"], ["d"]]


def test_a_batch_answered_before_its_worker_died_is_done() -> None:
    harness = BrokerHarness(BrokerSettings(max_crashes_per_request=1))
    harness.send(WORKER, register())
    harness.send(CLIENT, OPEN_SESSION, submit(5))
    harness.send(WORKER, answer(harness.lease(), 0))
    harness.handle(Unreachable(WORKER))
    harness.send(OTHER_WORKER, register())
    assert harness.leases(OTHER_WORKER) == []
    assert harness.received(CLIENT, m.BatchFailed) == []


def test_an_answered_description_is_not_leased_again(harness: BrokerHarness) -> None:
    harness.send(CLIENT, m.Submit(batch=5, model=A, work=pack_work(DescribeWork())))
    lease = harness.lease()
    # The broker does not look into the answer, so any kind of answer serves as the description.
    described = m.LeaseAnswered(lease=lease.lease, indices=[0], answers=text_answers("demo"))
    harness.send(WORKER, described)
    harness.handle(Unreachable(WORKER))
    harness.send(OTHER_WORKER, register())
    assert harness.leases(OTHER_WORKER) == []


@crashes
def test_a_request_is_abandoned_after_too_many_crashes(fault: Fault) -> None:
    harness = BrokerHarness(BrokerSettings(max_crashes_per_request=2))
    harness.send(CLIENT, OPEN_SESSION, submit(5))
    for attempt in (1, 2):
        harness.send(WORKER, register())
        assert harness.leases()[-1].attempt == attempt
        fault(harness)
    ((batch, index, error),) = harness.item_failures()
    assert (batch, index, type(error)) == (5, 0, WorkerUnavailable)
    assert "abandoned: 2 processes died" in error.message
    assert "jax worker 7 on here" in error.message
    harness.send(OTHER_WORKER, register())
    assert harness.leases(OTHER_WORKER) == []


def test_an_orderly_shutdown_is_no_crash() -> None:
    harness = BrokerHarness(BrokerSettings(max_crashes_per_request=1))
    harness.send(CLIENT, OPEN_SESSION, submit(5))
    for _ in range(3):
        harness.send(WORKER, register())
        harness.lease()
        harness.send(WORKER, m.CloseWorker())
    assert harness.item_failures() == []


@crashes
def test_a_late_answer_of_a_disconnected_worker_is_dropped(harness: BrokerHarness, fault: Fault) -> None:
    harness.send(CLIENT, submit(5, texts="ab"))
    first = harness.lease()
    fault(harness)
    harness.send(WORKER, register(), answer(first, 0))
    assert harness.answers() == []
    while leases := harness.leases():
        harness.send(WORKER, *finish(leases[-1]))
    assert answered_letters(harness) == "ab"


@pytest.mark.parametrize(
    "message", [m.Heartbeat(phase="loading"), m.LeaseNotice(lease=1, level="info", text="loading")], ids=name_of
)
def test_a_worker_that_sends_messages_keeps_its_leases(harness: BrokerHarness, message: FromPeer) -> None:
    harness.send(CLIENT, submit(1))
    lease = harness.lease()
    for _ in range(4):
        harness.advance(harness.settings.worker_timeout_s * 0.9)
        harness.send(CLIENT, m.Ping())
        harness.send(WORKER, message)
    harness.send(WORKER, answer(lease, 0))
    assert harness.answers() == [(1, [0], ["X"])]


# --- Model processes that crash ---------------------------------------------------------------------------------------


def run_until_done(harness: BrokerHarness, poison: str, worker: bytes = WORKER) -> list[str]:
    """Run a worker until nothing is left, and crash it at each lease with a poison letter; return its leases."""
    leased = []
    while leases := harness.leases(worker):
        for lease in leases:
            letters = "".join(texts_of(lease))
            leased.append(letters)
            harness.send(worker, *([crash(lease)] if set(letters) & set(poison) else finish(lease)))
    return leased


def answered_letters(harness: BrokerHarness) -> str:
    return "".join(sorted(text.lower() for _, _, texts in harness.answers() for text in texts))


def test_a_crash_leads_to_another_attempt(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="ab"))
    harness.send(WORKER, crash(harness.lease()))
    again = harness.lease()
    assert (texts_of(again), again.attempt) == (["a", "b"], 2)
    harness.send(WORKER, *finish(again))
    assert harness.answers() == [(5, [0, 1], ["A", "B"])]
    assert harness.received(CLIENT, m.ItemFailed) == []


def test_items_answered_before_a_crash_are_not_retried(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="abc"))
    lease = harness.lease()
    harness.send(WORKER, answer(lease, 1), crash(lease))
    assert texts_of(harness.lease()) == ["a", "c"]


def test_a_crash_is_reported_to_the_client(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5))
    harness.send(WORKER, crash(harness.lease()))
    (notice,) = harness.received(CLIENT, m.Notice)
    assert (notice.batch, notice.level) == (5, "warning")
    assert "after a crash: it ended by SIGSEGV" in notice.text


def test_a_poison_request_is_found_by_bisection_and_all_others_are_answered(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="abcdefgh"))
    assert run_until_done(harness, "f") == ["abcdefgh", "abcdefgh", "abcd", "efgh", "ef", "e", "f", "f", "gh"]
    ((batch, index, error),) = harness.item_failures()
    assert (batch, index, type(error), error.remote_traceback) == (5, 5, ModelProcessDied, "line 7")
    assert "abandoned: 6 processes died while computing it; the last error: it ended by SIGSEGV" in error.message
    assert answered_letters(harness) == "abcdegh"


@pytest.mark.parametrize("poison", ["a", "h", "ah", "de", "abc", "aceg", "bdfh"])
def test_only_poison_requests_are_abandoned(harness: BrokerHarness, poison: str) -> None:
    harness.send(CLIENT, submit(5, texts="abcdefgh"), submit(6, texts="ijkl"))
    run_until_done(harness, poison)
    assert sorted("abcdefgh"[index] for _, index, _ in harness.item_failures()) == list(poison)
    assert answered_letters(harness) == "".join(sorted(set("abcdefghijkl") - set(poison)))
    assert harness.received(CLIENT, m.BatchFailed) == []


def test_a_single_request_is_abandoned_at_the_third_crash(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="a"))
    assert run_until_done(harness, "a") == ["a", "a", "a"]
    assert len(harness.item_failures()) == 1


def test_a_model_that_always_crashes_fails_the_batch_before_each_request_is_tried() -> None:
    harness = BrokerHarness(BrokerSettings(max_consecutive_crashes=8))
    harness.send(CLIENT, OPEN_SESSION, submit(5, texts="abcdefgh" * 8))
    harness.send(WORKER, register())
    assert len(run_until_done(harness, "abcdefgh")) == 8
    number, error = harness.batch_failure()
    assert (number, type(error), error.remote_traceback) == (5, ModelProcessDied, "line 7")
    assert "8 processes in a row died while computing A, without an answer in between" in error.message
    harness.send(CLIENT, submit(6, texts="z"))
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers() == [(6, [0], ["Z"])]


def test_a_suspect_shares_its_worker_with_no_other_lease() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, OPEN_SESSION, submit(1, texts="a"), submit(2, texts="b"), submit(3, texts="c"))
    first, second = harness.leases()
    harness.send(WORKER, crash(first), m.LeaseReturned(lease=second.lease))
    for letters in ("b", "a"):
        lease = harness.lease()
        assert texts_of(lease) == [letters]
        harness.send(WORKER, *finish(lease))
    assert texts_of(harness.lease()) == ["c"]


def test_only_the_first_lease_of_a_disconnected_worker_becomes_suspect() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, OPEN_SESSION, submit(1, texts="a"), submit(2, texts="b"))
    harness.leases()
    harness.handle(Unreachable(WORKER))
    harness.send(OTHER_WORKER, register(capacity=2))
    suspect = harness.lease(OTHER_WORKER)
    assert (texts_of(suspect), suspect.attempt) == (["a"], 2)


def test_a_returned_lease_is_no_suspect() -> None:
    harness = BrokerHarness(BrokerSettings(max_crashes_per_request=1))
    harness.send(WORKER, register())
    harness.send(CLIENT, OPEN_SESSION, submit(5, texts="ab"))
    for _ in range(4):
        harness.send(WORKER, m.LeaseReturned(lease=harness.lease().lease))
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers() == [(5, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("end", [crash, lambda lease: m.LeaseReturned(lease=lease.lease)], ids=["crash", "return"])
def test_a_lease_that_ends_after_its_last_answer_is_done(
    harness: BrokerHarness, end: Callable[[m.Lease], FromPeer]
) -> None:
    harness.send(CLIENT, submit(5))
    lease = harness.lease()
    harness.send(WORKER, answer(lease, 0), end(lease))
    assert harness.leases() == []
    assert harness.received(CLIENT, m.ItemFailed) == []


def test_retries_and_model_switches_are_reported_in_pongs(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, A), submit(2, B), m.Ping())
    harness.send(WORKER, crash(harness.lease()))
    harness.send(WORKER, *finish(harness.lease()))
    harness.send(CLIENT, m.Ping())
    assert [(pong.model_switches, pong.retries) for pong in harness.received(CLIENT, m.Pong)] == [(0, 0), (1, 1)]


# --- Silent peers -----------------------------------------------------------------------------------------------------


def test_a_silent_worker_is_probed(harness: BrokerHarness) -> None:
    harness.advance(harness.settings.probe_s)
    assert harness.received(WORKER, m.Pong) == []
    harness.advance(0.1)
    assert harness.received(WORKER, m.Pong) == [m.Pong(workers=1)]


def test_a_silent_client_is_probed_if_it_has_batches(harness: BrokerHarness) -> None:
    harness.advance(harness.settings.probe_s + 0.1)
    assert harness.received(CLIENT, m.Pong) == []
    harness.send(CLIENT, submit(1))
    harness.advance(harness.settings.probe_s + 0.1)
    assert harness.received(CLIENT, m.Pong) == [m.Pong(workers=1)]


# --- A broker that was stopped ----------------------------------------------------------------------------------------


def test_time_in_which_the_broker_was_stopped_causes_no_timeouts(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5))
    lease = harness.lease()
    harness.now += 3_600
    harness.handle(Tick(stall_s=3_600))
    harness.send(WORKER, *finish(lease))
    assert harness.answers() == [(5, [0], ["X"])]
    harness.advance(harness.settings.worker_timeout_s + 0.1)
    harness.send(WORKER, m.Heartbeat(phase="ready"))
    assert len(harness.received(WORKER, m.Refusal)) == 1
