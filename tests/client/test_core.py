"""The client's state machine, tested by its actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq._version import __version__
from birdie_zmq.client.actions import Action, Deliver, DeliverParts, FailCall, FailItem, Log, ReportProgress, Send
from birdie_zmq.client.core import ClientCore
from birdie_zmq.client.job import Job
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
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_work
from birdie_zmq.settings import BrokerSettings, ClientSettings
from birdie_zmq.types import Answer, ComputeCounters, ErrorReport, ModelSpec, RollingWork, StepLimits

ENDPOINT = "tcp://127.0.0.1:5555"
MODEL = ModelSpec(tag="demo", arguments='{"seed": 1}')
LIMITS = StepLimits(max_rows=8)
SETTINGS = ClientSettings(connect_s=5, worker_wait_s=60, ping_s=1, broker_timeout_s=30, window=2, max_failed_items=3)

OPEN_SESSION = Send(m.OpenSession(package_version=__version__))
OPENED = m.SessionOpened(package_version=__version__, timeout_s=30.0)
PING = Send(m.Ping())


def new_core() -> ClientCore:
    return ClientCore(MODEL, LIMITS, SETTINGS, ENDPOINT)


def job(*items: int) -> Job:
    """Return a job whose texts name the caller's items."""
    return Job(RollingWork(texts=[f"text {item}" for item in items]), list(items))


class Submission:
    """A Submit that is to be sent, compared by its frame: records with arrays cannot be compared."""

    def __init__(self, message: m.Submit) -> None:
        self._frame = encode(message)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Send) and encode(other.message) == self._frame

    __hash__ = None  # type: ignore[assignment]


def submit(batch: int, *items: int) -> Submission:
    return Submission(m.Submit(batch=batch, model=MODEL, work=pack_work(job(*items).work), limits=LIMITS))


def answered(batch: int, scores: dict[int, float]) -> m.Answered:
    """Return answers by their index in a batch."""
    return answered_in_order(batch, list(scores), list(scores.values()))


def answered_in_order(batch: int, indices: Sequence[int], scores: Sequence[float]) -> m.Answered:
    """Return answers whose indices may repeat, or not match the answers."""
    return m.Answered(batch=batch, indices=list(indices), answers=pack_answers("rolling", scores))


def batch_failed(batch: int) -> m.BatchFailed:
    return m.BatchFailed(batch=batch, error=ErrorReport.of(RequestError("no such model")))


def item_failed(batch: int, index: int) -> m.ItemFailed:
    return m.ItemFailed(batch=batch, index=index, error=ErrorReport.of(RequestError("too long")))


def refusal(error: BirdieError) -> m.Refusal:
    return m.Refusal(error=ErrorReport.of(error))


UNKNOWN_PEER = refusal(UnknownPeer("a Submit came before an OpenSession"))


def open_core(*jobs: Job, now: float = 0.0) -> ClientCore:
    """Return a core with an open session that has sent its first batches."""
    core = new_core()
    core.begin(jobs, now)
    core.received(OPENED, now)
    return core


def delivered(actions: Sequence[Action]) -> dict[int, Answer]:
    """Return the delivered answers, by the caller's numbers."""
    result: dict[int, Answer] = {}
    for action in actions:
        if isinstance(action, Deliver):
            for item, answer in zip(action.items, action.answers, strict=True):
                assert item not in result
                result[item] = answer
    return result


def sent(actions: Sequence[Action]) -> list[Send]:
    return [action for action in actions if isinstance(action, Send)]


def failure(actions: Sequence[Action]) -> FailCall:
    (fail,) = actions
    assert isinstance(fail, FailCall)
    return fail


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


# --- A restarted broker ----------------------------------------------------------------------------------------------


def test_a_restarted_broker_gets_a_new_session_and_the_unanswered_items() -> None:
    core = open_core(job(0, 1, 2), job(3), job(4))
    core.received(answered(0, {1: -1.0}), now=1.0)

    assert core.received(UNKNOWN_PEER, now=2.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=3.0) == [PING, submit(2, 0, 2), submit(3, 3)]
    assert sent(core.received(answered(3, {0: -3.0}), now=4.0)) == [submit(4, 4)]


def test_several_refusals_open_one_session() -> None:
    core = open_core(job(0), job(1))

    assert core.received(UNKNOWN_PEER, now=2.0) == [OPEN_SESSION]
    assert core.received(UNKNOWN_PEER, now=2.0) == []


def test_a_late_answer_of_an_earlier_session_is_ignored() -> None:
    core = open_core(job(0))
    core.received(UNKNOWN_PEER, now=1.0)
    core.received(OPENED, now=2.0)

    assert core.received(answered(0, {0: -1.0}), now=3.0) == []
    assert delivered(core.received(answered(1, {0: -2.0}), now=4.0)) == {0: -2.0}


class FakeBroker:
    """A broker that answers batches in any order and in any parts, and loses its state when it is restarted."""

    def __init__(self) -> None:
        self.knows_client = False
        self.texts: dict[int, list[str]] = {}
        self.unanswered: dict[int, set[int]] = {}

    def handle(self, message: m.ClientMessage) -> list[m.BrokerToClient | m.Refusal]:
        match message:
            case m.OpenSession():
                self.knows_client = True
                return [OPENED]
            case _ if not self.knows_client:
                return [UNKNOWN_PEER]
            case m.Submit(batch=batch):
                assert batch not in self.texts
                self.texts[batch] = texts_of(message)
                self.unanswered[batch] = set(range(len(self.texts[batch])))
                assert len(self.unanswered) <= 3  # two for its one worker, and one more
                return []
            case _:
                return [m.Pong(workers=1)]

    def answer(self, batch: int, indices: set[int]) -> m.Answered:
        """Score each text by the number in it."""
        self.unanswered[batch] -= indices
        if not self.unanswered[batch]:
            del self.unanswered[batch]
        return answered(batch, {i: score_of(self.texts[batch][i]) for i in sorted(indices)})

    def restart(self) -> None:
        self.knows_client = False
        self.texts.clear()
        self.unanswered.clear()


def texts_of(message: m.Submit) -> list[str]:
    """Return the texts of a batch."""
    work = unpack_work(message.work)
    assert isinstance(work, RollingWork)
    return work.texts


def score_of(text: str) -> float:
    return -float(text.removeprefix("text "))


@given(st.lists(st.integers(1, 5), max_size=6), st.data())
def test_every_item_is_delivered_once_despite_broker_restarts(sizes: list[int], data: st.DataObject) -> None:
    items = data.draw(st.permutations(range(sum(sizes))))
    ends = list(accumulate(sizes))
    core, broker = new_core(), FakeBroker()
    answers: dict[int, Answer] = {}
    now = 0.0
    restarts = 3

    def act(actions: Sequence[Action]) -> None:
        new = delivered(actions)
        assert answers.keys().isdisjoint(new)
        answers.update(new)
        assert not any(isinstance(action, FailCall) for action in actions)
        for send in sent(actions):
            for reply in broker.handle(send.message):
                act(core.received(reply, now))

    act(core.begin([job(*items[end - size : end]) for size, end in zip(sizes, ends, strict=True)], now))
    while not core.is_idle:
        now += SETTINGS.ping_s
        if restarts and data.draw(st.booleans(), label="restart"):
            restarts -= 1
            broker.restart()
        if broker.unanswered:
            batch = data.draw(st.sampled_from(sorted(broker.unanswered)), label="batch")
            new = data.draw(st.sampled_from(sorted(broker.unanswered[batch])), label="answered now")
            more = data.draw(st.sets(st.sampled_from(range(len(broker.texts[batch])))), label="further items")
            act(core.received(broker.answer(batch, {new, *more}), now))
        else:
            act(core.tick(now))

    assert answers == {item: -float(item) for item in items}


# --- Silence ---------------------------------------------------------------------------------------------------------


def test_a_connection_timeout_names_the_endpoint_and_the_command() -> None:
    core = new_core()
    core.begin([job(0)], now=10.0)

    assert core.tick(now=15.0) == [OPEN_SESSION]
    error = failure(core.tick(now=15.1)).error
    assert isinstance(error, BrokerUnavailable)
    assert f"no broker answered at {ENDPOINT} within 5 s" in error.message
    assert f"python broker.py --bind {ENDPOINT}" in error.message


def test_the_next_call_opens_a_session_again_with_the_full_timeout() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)
    core.tick(now=6.0)

    assert core.begin([job(1)], now=100.0) == [OPEN_SESSION]
    assert core.tick(now=105.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=105.0) == [PING, submit(0, 1)]


def test_a_call_after_an_interrupted_one_waits_the_full_timeout() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)  # Then Ctrl-C ends this call.

    core.begin([job(1)], now=100.0)

    assert core.tick(now=105.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=105.0) == [PING, submit(0, 1)]


def test_a_silent_broker_is_warned_about_once_and_then_fails_the_call() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=1), now=10.0)

    assert core.tick(now=19.9) == [PING]
    log_action, ping = core.tick(now=21.0)
    assert isinstance(log_action, Log)
    assert f"the broker at {ENDPOINT} has been silent for 11 s; waiting 19 s more" in log_action.text
    assert ping == PING
    assert core.tick(now=40.0) == [PING]
    error = failure(core.tick(now=40.1)).error
    assert isinstance(error, BrokerUnavailable)
    assert f"no broker answered at {ENDPOINT} within 30 s" in error.message


def test_open_session_is_repeated_until_a_lost_broker_is_back() -> None:
    core = open_core(job(0))
    core.received(UNKNOWN_PEER, now=1.0)

    assert core.tick(now=1.9) == []
    assert core.tick(now=2.0) == [OPEN_SESSION]
    assert sent(core.tick(now=30.0)) == [OPEN_SESSION]
    assert isinstance(failure(core.tick(now=31.1)).error, BrokerUnavailable)


def test_a_lost_open_session_is_repeated() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)

    assert core.tick(now=1.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=1.1) == [PING, submit(0, 0)]


def test_time_in_which_this_process_was_stopped_counts_for_no_timeout() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=0), now=1.0)

    assert core.tick(now=3_601.0, stall_s=3_600.0) == [PING]
    assert core.received(m.Pong(workers=0), now=3_602.0) == []


def test_a_stopped_process_still_waits_for_the_session() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)

    assert core.tick(now=3_601.0, stall_s=3_600.0) == [OPEN_SESSION]


def test_broker_silence_and_missing_worker_times() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=1), now=10.0)
    assert (core.broker_silent_s(now=12.0), core.worker_missing_s()) == (2.0, 0.0)
    core.received(m.Pong(workers=0), now=15.0)
    assert (core.broker_silent_s(now=15.0), core.worker_missing_s()) == (0.0, 5.0)
    core.received(answered(0, {0: -1.0}), now=16.0)
    assert (core.broker_silent_s(now=99.0), core.worker_missing_s()) == (0.0, 0.0)


def test_model_switches_and_retries_are_summed_over_broker_restarts() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=1, model_switches=2, retries=1), now=1.0)
    core.received(m.Pong(workers=1, model_switches=3, retries=1), now=2.0)
    core.received(UNKNOWN_PEER, now=3.0)
    core.received(OPENED, now=3.0)
    core.received(m.Pong(workers=1, model_switches=0, retries=4), now=4.0)

    assert (core.session.model_switches, core.session.retries) == (3, 5)


def test_time_before_a_call_counts_for_no_timeout() -> None:
    core = open_core()

    assert core.begin([job(0)], now=1000.0) == [PING, submit(0, 0)]
    assert core.tick(now=1000.1) == []


def test_the_broker_is_pinged_while_items_are_unanswered() -> None:
    core = open_core(job(0))

    assert core.tick(now=0.9) == []
    assert core.tick(now=1.0) == [PING]
    assert core.tick(now=1.9) == []
    assert core.tick(now=2.0) == [PING]
    core.received(answered(0, {0: -1.0}), now=2.5)
    assert core.tick(now=4.0) == []


def test_no_worker_is_warned_about_once_and_then_fails_the_call() -> None:
    core = open_core(job(0))

    (log_action,) = core.received(m.Pong(workers=0), now=1.0)
    assert isinstance(log_action, Log)
    assert log_action.level == "warning"
    assert f"no worker yet; start one with: python -m workers.jax_worker --connect {ENDPOINT}" in log_action.text
    assert core.received(m.Pong(workers=0), now=60.0) == []
    error = failure(core.received(m.Pong(workers=0), now=60.1)).error
    assert isinstance(error, WorkerUnavailable)
    assert f"the broker at {ENDPOINT} has had no worker for 60 s" in error.message
    assert f"python -m workers.jax_worker --connect {ENDPOINT}" in error.message


@pytest.mark.parametrize(
    "message",
    [m.Pong(workers=1), answered(0, {0: -1.0}), m.Notice(batch=0, level="info", text="loading")],
)
def test_every_message_of_a_worker_restarts_the_worker_timeout(message: m.BrokerToClient) -> None:
    core = open_core(job(0, 1))
    core.received(message, now=50.0)

    assert not any(isinstance(action, FailCall) for action in core.received(m.Pong(workers=0), now=110.0))
    assert isinstance(failure(core.received(m.Pong(workers=0), now=110.1)).error, WorkerUnavailable)


def test_the_next_call_warns_about_no_worker_again() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=0), now=1.0)

    core.begin([job(1)], now=100.0)

    (log_action,) = core.received(m.Pong(workers=0), now=101.0)
    assert isinstance(log_action, Log)


@pytest.mark.parametrize(("workers", "in_flight"), [(0, 2), (1, 3), (3, 7), (100, 9)])
def test_more_workers_have_more_batches_in_flight(workers: int, in_flight: int) -> None:
    settings = replace(SETTINGS, max_window=9)
    core = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    core.begin([job(item) for item in range(20)], now=0.0)
    sent = core.received(OPENED, now=0.0)
    sent += core.received(m.Pong(workers=workers), now=0.5)
    assert (
        len([action for action in sent if isinstance(action, Send) and isinstance(action.message, m.Submit)])
        == in_flight
    )


def test_characters_in_flight_are_limited() -> None:
    """With many workers, many batches of long texts would be more bytes than the broker accepts."""
    settings = replace(SETTINGS, max_window=9, max_characters_in_flight=50)
    core = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    core.begin([replace(job(item), characters=20) for item in range(20)], now=0.0)
    core.received(OPENED, now=0.0)
    assert [action for action in core.received(m.Pong(workers=100), now=0.5) if isinstance(action, Send)] == []

    settings = replace(settings, max_characters_in_flight=60)
    core = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    core.begin([replace(job(item), characters=20) for item in range(20)], now=0.0)
    core.received(OPENED, now=0.0)
    assert len([action for action in core.received(m.Pong(workers=100), now=0.5) if isinstance(action, Send)]) == 1


def test_client_limits_are_within_the_brokers_limits() -> None:
    client, broker = ClientSettings(), BrokerSettings()
    assert max(client.window, client.max_window) <= broker.max_batches_per_client
    most = max(client.max_characters_in_flight, client.window * client.batch_characters)
    assert 4 * most < broker.max_bytes_per_client


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
