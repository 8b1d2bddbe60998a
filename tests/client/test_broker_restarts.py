"""ClientCore when the broker is restarted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client.actions import Action, FailCall
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import Answer
from tests.client.harness import (
    OPEN_SESSION,
    OPENED,
    PING,
    SETTINGS,
    UNKNOWN_PEER,
    answered,
    delivered,
    job,
    new_core,
    open_core,
    sent,
    submit,
    texts_of,
)


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
