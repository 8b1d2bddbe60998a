"""ClientCore, tested by its actions: the session, answers and failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest

from birdie_zmq.client.actions import Action, DeliverParts, FailItem, Log, ReportProgress, Send
from birdie_zmq.client.core import ClientCore
from birdie_zmq.errors import ProtocolError, RequestError, VersionMismatch
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import pack_answers
from birdie_zmq.types import ComputeCounters
from tests.client.harness import (
    ENDPOINT,
    LIMITS,
    MODEL,
    OPEN_SESSION,
    OPENED,
    PING,
    SETTINGS,
    UNKNOWN_PEER,
    answered,
    answered_in_order,
    batch_failed,
    delivered,
    failure,
    item_failed,
    job,
    new_core,
    open_core,
    refusal,
    sent,
    submit,
    texts_of,
)

# --- Session and window ----------------------------------------------------------------------------------------------


def test_a_session_is_opened_before_work_is_sent() -> None:
    core = new_core()

    assert core.begin([job(0), job(1)], now=0.0) == [OPEN_SESSION]
    assert not core.session.is_open
    assert core.received(OPENED, now=0.1) == [PING, submit(0, 0), submit(1, 1)]
    assert core.session.is_open


def test_an_open_session_is_not_opened_again() -> None:
    core = open_core()

    assert core.is_idle
    assert core.begin([job(0)], now=1.0) == [PING, submit(0, 0)]
    assert not core.is_idle


def test_a_second_session_opened_changes_nothing() -> None:
    assert open_core(job(0)).received(OPENED, now=1.0) == []


def test_batches_in_flight_are_limited_by_the_window() -> None:
    core = new_core()
    core.begin([job(0, 1), job(2), job(3), job(4)], now=0.0)

    assert core.received(OPENED, now=0.0) == [PING, submit(0, 0, 1), submit(1, 2)]
    assert sent(core.received(answered(0, {1: -1.0}), now=1.0)) == []
    assert sent(core.received(answered(0, {0: -1.0}), now=2.0)) == [submit(2, 3)]
    assert sent(core.received(answered(2, {0: -1.0}), now=3.0)) == [submit(3, 4)]
    assert not core.is_idle
    core.received(answered(3, {0: -1.0}), now=4.0)
    core.received(answered(1, {0: -1.0}), now=5.0)
    assert core.is_idle


def test_the_first_batches_are_sent_before_the_other_jobs_are_prepared() -> None:
    core = open_core()
    jobs = iter([job(item) for item in range(5)])

    assert core.begin(jobs, now=1.0) == [PING, submit(0, 0), submit(1, 1)]
    assert core.prepare_all() == [job(item) for item in range(5)]
    assert list(jobs) == []
    assert sent(core.received(answered(0, {0: -1.0}), now=2.0)) == [submit(2, 2)]


# --- Answers ---------------------------------------------------------------------------------------------------------


def test_answers_are_delivered_with_the_callers_item_numbers() -> None:
    core = open_core(job(7, 3, 5))

    assert delivered(core.received(answered(0, {2: -5.0, 0: -7.0}), now=1.0)) == {5: -5.0, 7: -7.0}
    assert delivered(core.received(answered(0, {1: -3.0}), now=2.0)) == {3: -3.0}
    assert core.is_idle


def test_the_first_answer_to_an_item_counts() -> None:
    core = open_core(job(0, 1))

    assert delivered(core.received(answered(0, {0: -1.0}), now=1.0)) == {0: -1.0}
    assert delivered(core.received(answered(0, {0: -2.0, 1: -3.0}), now=2.0)) == {1: -3.0}


def test_the_first_answer_counts_within_one_message_too() -> None:
    twice = answered_in_order(0, [0, 0], [-1.0, -2.0])

    assert delivered(open_core(job(0, 1)).received(twice, now=1.0)) == {0: -1.0}


def test_duplicate_answers_are_not_delivered() -> None:
    core = open_core(job(0, 1))
    core.received(answered(0, {0: -1.0}), now=1.0)

    assert core.received(answered(0, {0: -1.0}), now=2.0) == []


@pytest.mark.parametrize(
    "message", [answered(9, {0: -1.0}), batch_failed(9), m.Notice(batch=9, level="info", text="so")]
)
def test_messages_about_an_unknown_batch_are_ignored(message: m.BrokerToClient) -> None:
    assert open_core(job(0)).received(message, now=1.0) == []


def test_a_new_call_drops_unanswered_items_of_an_earlier_call() -> None:
    core = open_core(job(0, 1))

    assert core.begin([job(0)], now=1.0) == [PING, submit(1, 0)]
    assert core.received(answered(0, {0: -1.0, 1: -1.0}), now=2.0) == []
    assert core.received(batch_failed(0), now=2.0) == []
    assert delivered(core.received(answered(1, {0: -2.0}), now=3.0)) == {0: -2.0}


@pytest.mark.parametrize(
    ("indices", "scores"),
    [([0, 1], [-1.0]), ([0], [-1.0, -2.0]), ([2], [-1.0]), ([-1], [-1.0]), ([0, 2], [-1.0, -1.0])],
)
def test_answers_that_do_not_match_their_batch_fail_the_call(indices: list[int], scores: list[float]) -> None:
    message = answered_in_order(0, indices, scores)

    assert isinstance(failure(open_core(job(0, 1)).received(message, now=1.0)).error, ProtocolError)


def test_answers_of_another_type_fail_the_call() -> None:
    texts = m.Answered(batch=0, indices=[0], answers=pack_answers("generate", ["so"]))

    error = failure(open_core(job(0)).received(texts, now=1.0)).error

    assert isinstance(error, ProtocolError)
    assert error.message.startswith("the broker sent an invalid message: scores must be arrays")


# --- Failures and notices --------------------------------------------------------------------------------------------


def failed_items(actions: Sequence[Action]) -> list[int]:
    """Return the items that failed, by the caller's numbers."""
    failed = []
    for action in actions:
        if isinstance(action, FailItem):
            assert isinstance(action.error, RequestError)
            assert action.error.message == "too long"
            failed.append(action.item)
    return failed


def test_a_failed_batch_fails_the_call() -> None:
    fail = failure(open_core(job(7, 3, 5)).received(batch_failed(0), now=1.0))

    assert isinstance(fail.error, RequestError)
    assert fail.error.message == "no such model"


def test_a_failed_item_has_the_callers_number_and_the_others_are_answered() -> None:
    core = open_core(job(7, 3, 5), job(8), job(9))

    assert failed_items(core.received(item_failed(0, 1), now=1.0)) == [3]
    assert delivered(core.received(answered(0, {0: -7.0, 2: -5.0}), now=2.0)) == {7: -7.0, 5: -5.0}
    assert not core.is_idle
    core.received(answered(1, {0: -8.0}), now=3.0)
    core.received(answered(2, {0: -9.0}), now=4.0)
    assert core.is_idle


def test_the_next_batch_is_sent_after_the_last_item_failed() -> None:
    core = open_core(job(0), job(1), job(2))

    actions = core.received(item_failed(0, 0), now=1.0)

    assert failed_items(actions) == [0]
    assert sent(actions) == [submit(2, 2)]


def test_a_failed_item_is_not_sent_again() -> None:
    core = open_core(job(7, 3, 5))

    assert failed_items(core.received(item_failed(0, 1), now=1.0)) == [3]
    assert core.received(item_failed(0, 1), now=1.0) == []
    assert delivered(core.received(answered(0, {1: -3.0}), now=1.0)) == {}
    core.received(UNKNOWN_PEER, now=2.0)
    assert core.received(OPENED, now=3.0) == [PING, submit(1, 7, 5)]
    assert failed_items(core.received(item_failed(1, 1), now=4.0)) == [5]


def test_a_failed_item_that_is_not_in_its_batch_fails_the_call() -> None:
    assert isinstance(failure(open_core(job(7)).received(item_failed(0, 1), now=1.0)).error, ProtocolError)


def test_too_many_failed_items_end_the_call() -> None:
    core = open_core(job(0, 1, 2, 3), job(4))
    failed = []
    for index in range(SETTINGS.max_failed_items):
        actions = core.received(item_failed(0, index), now=1.0)
        failed += failed_items(actions)

    assert failed == [0, 1, 2]
    assert sent(actions) == [Send(m.CloseSession())]
    assert core.is_idle
    assert core.begin([job(0)], now=2.0) == [OPEN_SESSION]


def test_abandoned_work_is_dropped_here_and_at_the_broker() -> None:
    core = open_core(job(0), job(1))

    assert core.abandon() == [Send(m.CloseSession())]
    assert core.is_idle
    assert core.received(answered(0, {0: -1.0}), now=1.0) == []
    assert core.begin([job(2)], now=2.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=2.0) == [PING, submit(2, 2)]


def test_abandoning_before_the_session_is_open_sends_nothing() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)

    assert core.abandon() == []


def test_a_notice_of_a_batch_in_flight_is_logged() -> None:
    core = open_core(job(0))

    assert core.received(m.Notice(batch=0, level="info", text="loading"), now=1.0) == [Log("info", "loading")]
    notice = m.Notice(batch=0, level="warning", text="cut", once=True)
    assert core.received(notice, now=1.0) == [Log("warning", "cut", once=True)]


def test_progress_of_a_batch_in_flight_is_reported() -> None:
    core = open_core(job(0, 1))
    computed = ComputeCounters(tokens=5, seconds=1.0)

    assert core.received(m.Progressed(batch=0, progress=computed), now=1.0) == [ReportProgress(computed)]
    assert core.received(m.Progressed(batch=9, progress=computed), now=1.0) == []


def test_parts_have_the_callers_item_numbers_and_settle_nothing() -> None:
    core = open_core(job(7, 8))
    parts = m.PartlyAnswered(batch=0, indices=[1], answers=pack_answers("rolling", [-1.0]))

    assert core.received(parts, now=1.0) == [DeliverParts([8], [-1.0])]
    assert delivered(core.received(answered(0, {1: -2.0}), now=1.0)) == {8: -2.0}
    assert not core.is_idle
    for indices, scores in (([2], [-1.0]), ([0], [-1.0, -2.0])):
        wrong = m.PartlyAnswered(batch=0, indices=indices, answers=pack_answers("rolling", scores))
        assert isinstance(failure(core.received(wrong, now=1.0)).error, ProtocolError)


def test_a_refusal_fails_the_call() -> None:
    fail = failure(open_core(job(0)).received(refusal(VersionMismatch("version 2")), now=1.0))

    assert isinstance(fail.error, VersionMismatch)


# --- Short calls -----------------------------------------------------------------------------------------------------


def texts_sent(actions: Sequence[Action]) -> list[list[str]]:
    return [texts_of(send.message) for send in sent(actions) if isinstance(send.message, m.Submit)]


@pytest.mark.parametrize(
    ("items", "workers", "expected"),
    [
        ([256], 1, [256]),
        ([256], 2, [64, 64, 64, 64]),
        ([256, 44], 2, [85, 85, 86, 44]),
        ([256, 256, 256], 2, [256, 256, 256]),
        ([100], 2, [50, 50]),
        ([100], 8, [33, 33, 34]),
        ([63], 2, [63]),
    ],
)
def test_a_short_call_is_split_for_the_workers(items: list[int], workers: int, expected: list[int]) -> None:
    core = ClientCore(MODEL, LIMITS, replace(SETTINGS, window=8), ENDPOINT)
    core.begin([job(0)], now=0.0)
    core.received(OPENED, now=0.0)
    core.received(m.Pong(workers=workers), now=0.0)
    core.received(answered(0, {0: -1.0}), now=0.0)
    offsets = [0, *accumulate(items)]
    jobs = [job(*range(first, first + count)) for first, count in zip(offsets, items, strict=False)]

    sent = texts_sent(core.begin(jobs, now=1.0))

    assert [len(texts) for texts in sent] == pytest.approx(expected, abs=10)  # with about the same number of characters
    assert [text for texts in sent for text in texts] == [f"text {item}" for item in range(sum(items))]
