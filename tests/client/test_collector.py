"""The collector: answers in order, and one error for all items that failed."""

import logging
from collections.abc import Generator

import pytest

from birdie_zmq.client.actions import Deliver, FailItem
from birdie_zmq.client.collector import AnswerCollector, CallEvent, collect
from birdie_zmq.client.progress import Progress
from birdie_zmq.errors import ModelCallError, NonFiniteLogits, ProtocolError

NAN = NonFiniteLogits("the model returned NaN", remote_traceback="line 3")


def stream(*events: CallEvent) -> Generator[CallEvent, None, None]:
    yield from events


def test_answers_are_in_the_order_of_the_items() -> None:
    events = stream(Deliver([2, 0], ["c", "a"]), Progress(padding_share=0.5), Deliver([1], ["b"]))

    assert collect(events, 3) == ["a", "b", "c"]


def test_the_error_of_a_single_item_is_raised_as_it_is() -> None:
    with pytest.raises(NonFiniteLogits) as raised:
        collect(stream(FailItem(0, NAN)), 1)
    assert raised.value is NAN


def test_several_failures_are_one_error_with_the_name_of_the_first(caplog: pytest.LogCaptureFixture) -> None:
    cause = ZeroDivisionError()
    first = NonFiniteLogits("the model returned NaN", remote_traceback="line 3")
    first.__cause__ = cause
    collector = AnswerCollector(4, "document {}".format)
    with caplog.at_level(logging.WARNING):
        for event in (FailItem(3, first), Deliver([0, 1], [1.0, 2.0]), FailItem(2, ModelCallError("no"))):
            collector.add(event)

    with pytest.raises(NonFiniteLogits) as raised:
        collector.result()
    assert raised.value.message == (
        "document 3 has no answer, and 1 more failed (see above); 2 of 4 requests were answered. the model returned NaN"
    )
    assert raised.value.remote_traceback == "line 3"
    assert raised.value.__cause__ is cause
    assert [record.getMessage() for record in caplog.records] == [
        "document 3 has no answer: the model returned NaN",
        "document 2 has no answer: no",
    ]


def test_a_missing_answer_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="answered 1 of 2 items"):
        collect(stream(Deliver([1], [0.5])), 2)


def test_the_stream_is_closed_when_it_fails() -> None:
    closed = []

    def failing() -> Generator[CallEvent, None, None]:
        try:
            yield Deliver([0, 1], ["a"])  # fewer answers than items
        finally:
            closed.append(True)

    with pytest.raises(ValueError, match="shorter"):
        collect(failing(), 2)
    assert closed == [True]
