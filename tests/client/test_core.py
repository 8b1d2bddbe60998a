"""The client's whole behaviour, told by what it sends, delivers and gives up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq._version import __version__
from birdie_zmq.client.core import Action, ClientCore, Deliver, Fail, FailItem, Follow, Job, Send, Tell
from birdie_zmq.errors import (
    BirdieError,
    BrokerUnavailable,
    ProtocolError,
    RequestError,
    UnknownPeer,
    VersionMismatch,
    WorkerUnavailable,
)
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings, ClientSettings
from birdie_zmq.types import (
    ComputeCounters,
    ErrorReport,
    ModelSpec,
    ProgressDelta,
    RollingScores,
    RollingWork,
    StepLimits,
)

ENDPOINT = "tcp://127.0.0.1:5555"
MODEL = ModelSpec(tag="demo", arguments='{"seed": 1}')
LIMITS = StepLimits(max_rows=8)
SETTINGS = ClientSettings(connect_s=5, worker_wait_s=60, ping_s=1, broker_timeout_s=30, window=2, max_failed_items=3)

GREETING = Send(m.OpenSession(package_version=__version__))
OPENED = m.SessionOpened(package_version=__version__, timeout_s=30.0)
PING = Send(m.Ping())


def session() -> ClientCore:
    return ClientCore(MODEL, LIMITS, SETTINGS, ENDPOINT)


def job(*items: int) -> Job:
    """Work whose texts say which of the caller's items they are."""
    return Job(RollingWork(texts=[f"text {item}" for item in items]), list(items))


def submit(batch: int, *items: int) -> Send:
    return Send(m.Submit(batch=batch, model=MODEL, work=job(*items).work, limits=LIMITS))


def answered(batch: int, scores: dict[int, float]) -> m.Answered:
    """Answers by their index in a batch."""
    return m.Answered(
        batch=batch,
        indices=np.array(list(scores), dtype=np.int32),
        answers=RollingScores(loglikelihoods=np.array(list(scores.values()))),
    )


def failed(batch: int) -> m.BatchFailed:
    return m.BatchFailed(batch=batch, error=ErrorReport.of(RequestError("no such model")))


def item_failed(batch: int, index: int) -> m.ItemFailed:
    return m.ItemFailed(batch=batch, index=index, error=ErrorReport.of(RequestError("too long")))


def refusal(error: BirdieError) -> m.Refusal:
    return m.Refusal(error=ErrorReport.of(error))


UNKNOWN_PEER = refusal(UnknownPeer("a Submit came before a greeting"))


def opened(*jobs: Job, now: float = 0.0) -> ClientCore:
    """A session that the broker knows, with its first batches sent."""
    some = session()
    some.begin(jobs, now)
    some.received(OPENED, now)
    return some


def delivered(actions: Sequence[Action]) -> dict[int, float]:
    """The answers that the caller gets, by the caller's numbers."""
    result: dict[int, float] = {}
    for action in actions:
        if isinstance(action, Deliver):
            assert isinstance(action.answers, RollingScores)
            for item, position in zip(action.items, action.positions, strict=True):
                assert item not in result
                result[item] = float(action.answers.loglikelihoods[position])
    return result


def sent(actions: Sequence[Action]) -> list[Send]:
    return [action for action in actions if isinstance(action, Send)]


def failure(actions: Sequence[Action]) -> Fail:
    (fail,) = actions
    assert isinstance(fail, Fail)
    return fail


# --- Greeting and window ---------------------------------------------------------------------------------------------


def test_a_new_session_greets_before_it_sends_work() -> None:
    some = session()

    assert some.begin([job(0), job(1)], now=0.0) == [GREETING]
    assert not some.is_open
    assert some.received(OPENED, now=0.1) == [PING, submit(0, 0), submit(1, 1)]
    assert some.is_open


def test_a_session_that_is_open_is_not_greeted_again() -> None:
    some = opened()

    assert some.is_idle
    assert some.begin([job(0)], now=1.0) == [PING, submit(0, 0)]
    assert not some.is_idle


def test_a_second_answer_to_the_greeting_changes_nothing() -> None:
    assert opened(job(0)).received(OPENED, now=1.0) == []


def test_no_more_batches_are_in_flight_than_the_window_holds() -> None:
    some = session()
    some.begin([job(0, 1), job(2), job(3), job(4)], now=0.0)

    assert some.received(OPENED, now=0.0) == [PING, submit(0, 0, 1), submit(1, 2)]
    assert sent(some.received(answered(0, {1: -1.0}), now=1.0)) == []
    assert sent(some.received(answered(0, {0: -1.0}), now=2.0)) == [submit(2, 3)]
    assert sent(some.received(answered(2, {0: -1.0}), now=3.0)) == [submit(3, 4)]
    assert not some.is_idle
    some.received(answered(3, {0: -1.0}), now=4.0)
    some.received(answered(1, {0: -1.0}), now=5.0)
    assert some.is_idle


# --- Answers ---------------------------------------------------------------------------------------------------------


def test_answers_are_delivered_under_the_callers_numbers() -> None:
    some = opened(job(7, 3, 5))

    assert delivered(some.received(answered(0, {2: -5.0, 0: -7.0}), now=1.0)) == {5: -5.0, 7: -7.0}
    assert delivered(some.received(answered(0, {1: -3.0}), now=2.0)) == {3: -3.0}
    assert some.is_idle


def test_the_first_answer_to_an_item_counts() -> None:
    some = opened(job(0, 1))

    assert delivered(some.received(answered(0, {0: -1.0}), now=1.0)) == {0: -1.0}
    assert delivered(some.received(answered(0, {0: -2.0, 1: -3.0}), now=2.0)) == {1: -3.0}


def test_the_first_answer_counts_within_one_message_too() -> None:
    twice = m.Answered(
        batch=0,
        indices=np.array([0, 0], dtype=np.int32),
        answers=RollingScores(loglikelihoods=np.array([-1.0, -2.0])),
    )

    assert delivered(opened(job(0, 1)).received(twice, now=1.0)) == {0: -1.0}


def test_answers_that_bring_nothing_new_are_not_delivered() -> None:
    some = opened(job(0, 1))
    some.received(answered(0, {0: -1.0}), now=1.0)

    assert some.received(answered(0, {0: -1.0}), now=2.0) == [Follow(0, ProgressDelta())]


@pytest.mark.parametrize("message", [answered(9, {0: -1.0}), failed(9), m.Notice(batch=9, level="info", text="so")])
def test_what_is_said_of_an_unknown_batch_is_ignored(message: m.BrokerToClient) -> None:
    assert opened(job(0)).received(message, now=1.0) == []


def test_a_new_call_forgets_what_an_earlier_one_left_behind() -> None:
    some = opened(job(0, 1))

    assert some.begin([job(0)], now=1.0) == [PING, submit(1, 0)]
    assert some.received(answered(0, {0: -1.0, 1: -1.0}), now=2.0) == []
    assert some.received(failed(0), now=2.0) == []
    assert delivered(some.received(answered(1, {0: -2.0}), now=3.0)) == {0: -2.0}


@pytest.mark.parametrize(
    ("indices", "scores"),
    [([0, 1], [-1.0]), ([0], [-1.0, -2.0]), ([2], [-1.0]), ([-1], [-1.0]), ([0, 2], [-1.0, -1.0])],
)
def test_answers_that_do_not_fit_their_batch_fail_the_call(indices: list[int], scores: list[float]) -> None:
    message = m.Answered(
        batch=0,
        indices=np.array(indices, dtype=np.int32),
        answers=RollingScores(loglikelihoods=np.array(scores)),
    )

    assert isinstance(failure(opened(job(0, 1)).received(message, now=1.0)).error, ProtocolError)


# --- Failures and notices --------------------------------------------------------------------------------------------


def lost_items(actions: Sequence[Action]) -> list[int]:
    """The items that the caller hears have failed, by the caller's numbers."""
    lost = []
    for action in actions:
        if isinstance(action, FailItem):
            assert isinstance(action.error, RequestError)
            assert action.error.message == "too long"
            lost.append(action.item)
    return lost


def test_a_batch_that_fails_ends_the_call() -> None:
    fail = failure(opened(job(7, 3, 5)).received(failed(0), now=1.0))

    assert isinstance(fail.error, RequestError)
    assert fail.error.message == "no such model"


def test_an_item_that_fails_has_the_callers_number_and_the_others_are_still_answered() -> None:
    some = opened(job(7, 3, 5), job(8), job(9))

    assert lost_items(some.received(item_failed(0, 1), now=1.0)) == [3]
    assert delivered(some.received(answered(0, {0: -7.0, 2: -5.0}), now=2.0)) == {7: -7.0, 5: -5.0}
    assert not some.is_idle
    some.received(answered(1, {0: -8.0}), now=3.0)
    some.received(answered(2, {0: -9.0}), now=4.0)
    assert some.is_idle


def test_the_last_item_of_a_batch_may_fail_and_the_next_batch_is_sent() -> None:
    some = opened(job(0), job(1), job(2))

    actions = some.received(item_failed(0, 0), now=1.0)

    assert lost_items(actions) == [0]
    assert sent(actions) == [submit(2, 2)]


def test_an_item_fails_once_and_is_not_sent_again() -> None:
    some = opened(job(7, 3, 5))

    assert lost_items(some.received(item_failed(0, 1), now=1.0)) == [3]
    assert some.received(item_failed(0, 1), now=1.0) == []
    assert delivered(some.received(answered(0, {1: -3.0}), now=1.0)) == {}
    some.received(UNKNOWN_PEER, now=2.0)
    assert some.received(OPENED, now=3.0) == [PING, submit(1, 7, 5)]
    assert lost_items(some.received(item_failed(1, 1), now=4.0)) == [5]


def test_a_failure_that_does_not_fit_its_batch_fails_the_call() -> None:
    assert isinstance(failure(opened(job(7)).received(item_failed(0, 1), now=1.0)).error, ProtocolError)


def test_so_many_items_fail_that_the_rest_is_not_waited_for() -> None:
    some = opened(job(0, 1, 2, 3), job(4))
    lost = []
    for index in range(SETTINGS.max_failed_items):
        actions = some.received(item_failed(0, index), now=1.0)
        lost += lost_items(actions)

    assert lost == [0, 1, 2]
    assert sent(actions) == [Send(m.CloseSession())]
    assert some.is_idle
    assert some.begin([job(0)], now=2.0) == [GREETING]


def test_what_is_abandoned_is_dropped_by_the_broker_and_forgotten_here() -> None:
    some = opened(job(0), job(1))

    assert some.abandon() == [Send(m.CloseSession())]
    assert some.is_idle
    assert some.received(answered(0, {0: -1.0}), now=1.0) == []
    assert some.begin([job(2)], now=2.0) == [GREETING]
    assert some.received(OPENED, now=2.0) == [PING, submit(2, 2)]


def test_a_session_that_was_not_open_has_nothing_to_close() -> None:
    some = session()
    some.begin([job(0)], now=0.0)

    assert some.abandon() == []


def test_a_notice_of_a_batch_in_flight_is_told() -> None:
    some = opened(job(0))

    assert some.received(m.Notice(batch=0, level="info", text="loading"), now=1.0) == [Tell("info", "loading")]
    notice = m.Notice(batch=0, level="warning", text="cut", once=True)
    assert some.received(notice, now=1.0) == [Tell("warning", "cut", once=True)]


def test_what_was_computed_comes_with_the_answers() -> None:
    some = opened(job(0, 1))
    advance = ProgressDelta(computed=ComputeCounters(tokens=5, seconds=1.0), remaining=7)
    message = msgspec.structs.replace(answered(0, {0: -1.0}), progress=advance)
    deliver, follow = some.received(message, now=1.0)
    assert isinstance(deliver, Deliver)
    assert (deliver.items, follow) == ([0], Follow(0, advance))
    assert some.received(m.Progressed(batch=0, progress=advance), now=1.0) == [Follow(0, advance)]
    assert some.received(m.Progressed(batch=9, progress=advance), now=1.0) == []


def test_a_refusal_fails_the_call() -> None:
    fail = failure(opened(job(0)).received(refusal(VersionMismatch("version 2")), now=1.0))

    assert isinstance(fail.error, VersionMismatch)


# --- A broker that was started again ---------------------------------------------------------------------------------


def test_a_broker_that_does_not_know_the_client_is_greeted_and_gets_what_is_unanswered() -> None:
    some = opened(job(0, 1, 2), job(3), job(4))
    some.received(answered(0, {1: -1.0}), now=1.0)

    assert some.received(UNKNOWN_PEER, now=2.0) == [GREETING]
    assert some.received(OPENED, now=3.0) == [PING, submit(2, 0, 2), submit(3, 3)]
    assert sent(some.received(answered(3, {0: -3.0}), now=4.0)) == [submit(4, 4)]


def test_it_is_greeted_once_however_often_it_refuses() -> None:
    some = opened(job(0), job(1))

    assert some.received(UNKNOWN_PEER, now=2.0) == [GREETING]
    assert some.received(UNKNOWN_PEER, now=2.0) == []


def test_a_late_answer_from_before_is_ignored() -> None:
    some = opened(job(0))
    some.received(UNKNOWN_PEER, now=1.0)
    some.received(OPENED, now=2.0)

    assert some.received(answered(0, {0: -1.0}), now=3.0) == []
    assert delivered(some.received(answered(1, {0: -2.0}), now=4.0)) == {0: -2.0}


class FakeBroker:
    """Answers batches in any order and in any pieces, and forgets everything when it is started again."""

    def __init__(self) -> None:
        self.knows_client = False
        self.texts: dict[int, list[str]] = {}
        self.unanswered: dict[int, set[int]] = {}

    def take(self, message: m.ClientMessage) -> list[m.BrokerToClient | m.Refusal]:
        match message:
            case m.OpenSession():
                self.knows_client = True
                return [OPENED]
            case _ if not self.knows_client:
                return [UNKNOWN_PEER]
            case m.Submit(batch=batch, work=RollingWork(texts=texts)):
                assert batch not in self.texts
                self.texts[batch] = texts
                self.unanswered[batch] = set(range(len(texts)))
                assert len(self.unanswered) <= 3  # two for its one worker, and one more
                return []
            case _:
                return [m.Pong(workers=1)]

    def answer(self, batch: int, indices: set[int]) -> m.Answered:
        """Score each text by the number that it names."""
        self.unanswered[batch] -= indices
        if not self.unanswered[batch]:
            del self.unanswered[batch]
        return answered(batch, {i: score_of(self.texts[batch][i]) for i in sorted(indices)})

    def restart(self) -> None:
        self.knows_client = False
        self.texts.clear()
        self.unanswered.clear()


def score_of(text: str) -> float:
    return -float(text.removeprefix("text "))


@given(st.lists(st.integers(1, 5), max_size=6), st.data())
def test_every_item_is_delivered_once_whatever_the_broker_goes_through(sizes: list[int], data: st.DataObject) -> None:
    items = data.draw(st.permutations(range(sum(sizes))))
    ends = list(accumulate(sizes))
    some, broker = session(), FakeBroker()
    answers: dict[int, float] = {}
    now = 0.0
    restarts = 3

    def act(actions: Sequence[Action]) -> None:
        new = delivered(actions)
        assert answers.keys().isdisjoint(new)
        answers.update(new)
        assert not any(isinstance(action, Fail) for action in actions)
        for send in sent(actions):
            for reply in broker.take(send.message):
                act(some.received(reply, now))

    act(some.begin([job(*items[end - size : end]) for size, end in zip(sizes, ends, strict=True)], now))
    while not some.is_idle:
        now += SETTINGS.ping_s
        if restarts and data.draw(st.booleans(), label="restart"):
            restarts -= 1
            broker.restart()
        if broker.unanswered:
            batch = data.draw(st.sampled_from(sorted(broker.unanswered)), label="batch")
            new = data.draw(st.sampled_from(sorted(broker.unanswered[batch])), label="answered now")
            more = data.draw(st.sets(st.sampled_from(range(len(broker.texts[batch])))), label="with it, new or not")
            act(some.received(broker.answer(batch, {new, *more}), now))
        else:
            act(some.tick(now))

    assert answers == {item: -float(item) for item in items}


# --- Silence ---------------------------------------------------------------------------------------------------------


def test_no_answer_to_the_greeting_names_the_endpoint_and_what_to_start() -> None:
    some = session()
    some.begin([job(0)], now=10.0)

    assert some.tick(now=15.0) == [GREETING]
    error = failure(some.tick(now=15.1)).error
    assert isinstance(error, BrokerUnavailable)
    assert f"no broker answered at {ENDPOINT} within 5 s" in error.message
    assert f"python broker.py --bind {ENDPOINT}" in error.message


def test_the_next_call_greets_again_and_waits_as_long() -> None:
    some = session()
    some.begin([job(0)], now=0.0)
    some.tick(now=6.0)

    assert some.begin([job(1)], now=100.0) == [GREETING]
    assert some.tick(now=105.0) == [GREETING]
    assert some.received(OPENED, now=105.0) == [PING, submit(0, 1)]


def test_a_call_after_one_that_was_interrupted_while_it_greeted_waits_as_long() -> None:
    some = session()
    some.begin([job(0)], now=0.0)  # and Ctrl-C, so that nothing more happens in this call

    some.begin([job(1)], now=100.0)

    assert some.tick(now=105.0) == [GREETING]
    assert some.received(OPENED, now=105.0) == [PING, submit(0, 1)]


def test_a_broker_that_falls_silent_is_told_of_once_and_then_given_up() -> None:
    some = opened(job(0))
    some.received(m.Pong(workers=1), now=10.0)

    assert some.tick(now=19.9) == [PING]
    tell, ping = some.tick(now=21.0)
    assert isinstance(tell, Tell)
    assert f"the broker at {ENDPOINT} has been silent for 11 s; it is waited for, 19 s more" in tell.text
    assert ping == PING
    assert some.tick(now=40.0) == [PING]
    error = failure(some.tick(now=40.1)).error
    assert isinstance(error, BrokerUnavailable)
    assert f"no broker answered at {ENDPOINT} within 30 s" in error.message


def test_a_broker_that_was_there_is_greeted_until_it_is_there_again() -> None:
    some = opened(job(0))
    some.received(UNKNOWN_PEER, now=1.0)

    assert some.tick(now=1.9) == []
    assert some.tick(now=2.0) == [GREETING]
    assert sent(some.tick(now=30.0)) == [GREETING]
    assert isinstance(failure(some.tick(now=31.1)).error, BrokerUnavailable)


def test_a_greeting_that_was_lost_is_repeated() -> None:
    some = session()
    some.begin([job(0)], now=0.0)

    assert some.tick(now=1.0) == [GREETING]
    assert some.received(OPENED, now=1.1) == [PING, submit(0, 0)]


def test_the_broker_is_not_blamed_for_the_time_in_which_this_process_was_stopped() -> None:
    some = opened(job(0))
    some.received(m.Pong(workers=0), now=1.0)

    assert some.tick(now=3_601.0, stall_s=3_600.0) == [PING]
    assert some.received(m.Pong(workers=0), now=3_602.0) == []


def test_a_greeting_is_waited_for_although_this_process_was_stopped() -> None:
    some = session()
    some.begin([job(0)], now=0.0)

    assert some.tick(now=3_601.0, stall_s=3_600.0) == [GREETING]


def test_it_is_known_how_long_the_broker_is_silent_and_a_worker_missing() -> None:
    some = opened(job(0))
    some.received(m.Pong(workers=1), now=10.0)
    assert (some.broker_silent_s(now=12.0), some.worker_missing_s()) == (2.0, 0.0)
    some.received(m.Pong(workers=0), now=15.0)
    assert (some.broker_silent_s(now=15.0), some.worker_missing_s()) == (0.0, 5.0)
    some.received(answered(0, {0: -1.0}), now=16.0)
    assert (some.broker_silent_s(now=99.0), some.worker_missing_s()) == (0.0, 0.0)


def test_switches_and_losses_are_added_up_over_brokers() -> None:
    some = opened(job(0))
    some.received(m.Pong(workers=1, model_switches=2, retries=1), now=1.0)
    some.received(m.Pong(workers=1, model_switches=3, retries=1), now=2.0)
    some.received(UNKNOWN_PEER, now=3.0)
    some.received(OPENED, now=3.0)
    some.received(m.Pong(workers=1, model_switches=0, retries=4), now=4.0)

    assert (some.model_switches, some.retries) == (3, 5)


def test_a_call_does_not_blame_the_broker_for_the_time_before_it() -> None:
    some = opened()

    assert some.begin([job(0)], now=1000.0) == [PING, submit(0, 0)]
    assert some.tick(now=1000.1) == []


def test_the_broker_is_pinged_while_there_is_something_to_wait_for() -> None:
    some = opened(job(0))

    assert some.tick(now=0.9) == []
    assert some.tick(now=1.0) == [PING]
    assert some.tick(now=1.9) == []
    assert some.tick(now=2.0) == [PING]
    some.received(answered(0, {0: -1.0}), now=2.5)
    assert some.tick(now=4.0) == []


def test_no_worker_is_told_once_and_then_an_error() -> None:
    some = opened(job(0))

    (tell,) = some.received(m.Pong(workers=0), now=1.0)
    assert isinstance(tell, Tell)
    assert tell.level == "warning"
    assert f"no worker yet; start one with: python -m workers.jax_worker --connect {ENDPOINT}" in tell.text
    assert some.received(m.Pong(workers=0), now=60.0) == []
    error = failure(some.received(m.Pong(workers=0), now=60.1)).error
    assert isinstance(error, WorkerUnavailable)
    assert f"the broker at {ENDPOINT} has had no worker for 60 s" in error.message
    assert f"python -m workers.jax_worker --connect {ENDPOINT}" in error.message


@pytest.mark.parametrize(
    "sign_of_life",
    [m.Pong(workers=1), answered(0, {0: -1.0}), m.Notice(batch=0, level="info", text="loading")],
)
def test_the_wait_for_a_worker_begins_anew_with_every_sign_of_one(sign_of_life: m.BrokerToClient) -> None:
    some = opened(job(0, 1))
    some.received(sign_of_life, now=50.0)

    assert not any(isinstance(action, Fail) for action in some.received(m.Pong(workers=0), now=110.0))
    assert isinstance(failure(some.received(m.Pong(workers=0), now=110.1)).error, WorkerUnavailable)


def test_the_next_call_is_told_of_no_worker_again() -> None:
    some = opened(job(0))
    some.received(m.Pong(workers=0), now=1.0)

    some.begin([job(1)], now=100.0)

    (tell,) = some.received(m.Pong(workers=0), now=101.0)
    assert isinstance(tell, Tell)


@pytest.mark.parametrize(("workers", "in_flight"), [(0, 2), (1, 3), (3, 7), (100, 9)])
def test_more_workers_have_more_batches_in_flight(workers: int, in_flight: int) -> None:
    settings = replace(SETTINGS, max_window=9)
    some = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    some.begin([job(item) for item in range(20)], now=0.0)
    sent = some.received(OPENED, now=0.0)
    sent += some.received(m.Pong(workers=workers), now=0.5)
    assert (
        len([action for action in sent if isinstance(action, Send) and isinstance(action.message, m.Submit)])
        == in_flight
    )


def test_long_texts_in_flight_are_no_more_than_a_broker_takes() -> None:
    """Many workers would have many batches at once, whose bytes the broker would refuse."""
    settings = replace(SETTINGS, max_window=9, max_characters_in_flight=50)
    some = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    some.begin([replace(job(item), characters=20) for item in range(20)], now=0.0)
    some.received(OPENED, now=0.0)
    assert [action for action in some.received(m.Pong(workers=100), now=0.5) if isinstance(action, Send)] == []

    settings = replace(settings, max_characters_in_flight=60)
    some = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    some.begin([replace(job(item), characters=20) for item in range(20)], now=0.0)
    some.received(OPENED, now=0.0)
    assert len([action for action in some.received(m.Pong(workers=100), now=0.5) if isinstance(action, Send)]) == 1


def test_what_may_be_in_flight_is_within_what_the_broker_takes() -> None:
    client, broker = ClientSettings(), BrokerSettings()
    assert max(client.window, client.max_window) <= broker.max_batches_per_client
    most = max(client.max_characters_in_flight, client.window * client.batch_characters)
    assert 4 * most < broker.max_bytes_per_client


# --- Short calls -----------------------------------------------------------------------------------------------------


def texts_sent(actions: Sequence[Action]) -> list[list[str]]:
    works = [
        action.message.work for action in actions if isinstance(action, Send) and isinstance(action.message, m.Submit)
    ]
    return [work.texts for work in works if isinstance(work, RollingWork)]


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
def test_a_call_that_is_short_for_so_many_workers_is_cut(items: list[int], workers: int, expected: list[int]) -> None:
    some = ClientCore(MODEL, LIMITS, replace(SETTINGS, window=8), ENDPOINT)
    some.begin([job(0)], now=0.0)
    some.received(OPENED, now=0.0)
    some.received(m.Pong(workers=workers), now=0.0)
    some.received(answered(0, {0: -1.0}), now=0.0)
    firsts = [0, *accumulate(items)]
    jobs = [job(*range(first, first + count)) for first, count in zip(firsts, items, strict=False)]

    sent = texts_sent(some.begin(some.cut(jobs), now=1.0))

    assert [len(texts) for texts in sent] == pytest.approx(expected, abs=10)  # of about as many characters
    assert [text for texts in sent for text in texts] == [f"text {item}" for item in range(sum(items))]
