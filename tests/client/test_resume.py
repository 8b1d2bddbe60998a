"""Requests missing from the journal are sent once, recorded first and then delivered, with the caller's numbers and names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import pytest

from birdie_zmq.client.actions import Deliver, FailItem
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import answer_key
from birdie_zmq.client.request_types import LOGLIKELIHOOD_ROLLING
from birdie_zmq.client.resume import ResumableClient
from birdie_zmq.errors import BirdieError, ModelCallError
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer, RollingWork

SETTINGS = ClientSettings(batch_items=2)


class FakeClient:
    """A client that answers a text with its length, or with the test's own function."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.answer: Callable[[str], Answer | BirdieError] = lambda text: -float(len(text))

    def stream(self, jobs: Iterable[Job], *, with_progress: bool = False) -> Generator[CallEvent, None, None]:
        assert not with_progress
        for job in jobs:
            assert isinstance(job.work, RollingWork)
            for text, item in zip(job.work.texts, job.items, strict=True):
                self.texts.append(text)
                answer = self.answer(text)
                yield FailItem(item, answer) if isinstance(answer, BirdieError) else Deliver([item], [answer])


class Run:
    """One run of a program, with or without a journal."""

    def __init__(self, journal: Journal | None) -> None:
        self.client = FakeClient()
        self.delivered: dict[int, Answer] = {}
        self.failed: list[int] = []
        self.resumable = ResumableClient(self.client, journal, SETTINGS)

    def events(self, *texts: str, identity: str = "identity") -> Iterator[CallEvent]:
        return self.resumable.stream(identity, LOGLIKELIHOOD_ROLLING, texts)

    def __call__(self, *texts: str, identity: str = "identity") -> list[Answer]:
        """Return the answers in order; those of failed requests are missing."""
        for event in self.events(*texts, identity=identity):
            match event:
                case Deliver(items, answers):
                    self.delivered.update(zip(items, answers, strict=True))
                case FailItem(item, _):
                    self.failed.append(item)
        return [self.delivered[item] for item in range(len(texts)) if item in self.delivered]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


def recorded(journal: Journal, *texts: str) -> list[str]:
    """Return the texts that have an answer in the journal."""
    keys = {answer_key("identity", "loglikelihood_rolling", text): text for text in texts}
    return sorted(keys[key] for key in journal.scan(set(keys)).answers)


def test_answers_are_in_order_whether_recorded_or_new(journal: Journal) -> None:
    Run(journal)("bb", "dddd")
    second = Run(journal)

    assert second("a", "bb", "ccc", "dddd", "eeeee") == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert second.delivered == dict(enumerate([-1.0, -2.0, -3.0, -4.0, -5.0]))
    assert sorted(second.client.texts) == ["a", "ccc", "eeeee"]
    assert second.resumable.resumed == 2


def test_failed_requests_have_the_callers_numbers(journal: Journal) -> None:
    Run(journal)("a")
    second = Run(journal)
    second.client.answer = lambda text: ModelCallError("no")
    second("a", "bb", "bb", "ccc")

    assert sorted(second.failed) == [1, 3]
    assert second.delivered == {0: -1.0}
    assert recorded(journal, "a", "bb", "ccc") == ["a"]


def test_equal_requests_are_sent_once_and_each_is_delivered(journal: Journal) -> None:
    first = Run(journal)
    assert first("a", "bb", "a", "a") == [-1.0, -2.0, -1.0, -1.0]
    second = Run(journal)
    assert second("a", "a") == [-1.0, -1.0]

    assert sorted(first.client.texts) == ["a", "bb"]
    assert first.delivered == {0: -1.0, 1: -2.0, 2: -1.0, 3: -1.0}
    assert second.client.texts == []
    assert (first.resumable.resumed, second.resumable.resumed) == (0, 2)
    assert len(journal.path.read_bytes().splitlines()) == 3


def test_an_answer_is_recorded_before_it_is_delivered(journal: Journal) -> None:
    run = Run(journal)
    in_time = [
        recorded(journal, ["a", "bb"][item]) != []
        for event in run.events("a", "bb")
        if isinstance(event, Deliver)
        for item in event.items
    ]

    assert in_time == [True, True]


def test_answers_before_an_error_are_recorded(journal: Journal) -> None:
    run = Run(journal)

    def fail_at_one(text: str) -> Answer:
        if text == "a":
            raise RuntimeError("no")
        return -float(len(text))

    run.client.answer = fail_at_one
    with pytest.raises(RuntimeError):
        run("a", "bb", "ccc")

    assert recorded(journal, "a", "bb", "ccc") == ["bb", "ccc"]  # The longest texts are sent first.


def test_an_answer_of_another_type_is_neither_recorded_nor_reused(journal: Journal) -> None:
    run = Run(journal)
    run.client.answer = lambda text: "not a number"
    assert run("a") == ["not a number"]
    assert recorded(journal, "a") == []

    journal.append(answer_key("identity", "loglikelihood_rolling", "a"), "not a number")
    again = Run(journal)
    assert again("a") == [-1.0]
    assert again.client.texts == ["a"]


def test_without_a_journal_every_request_is_sent() -> None:
    run = Run(None)
    assert run("a", "a", "bb") == [-1.0, -1.0, -2.0]
    assert run("a") == [-1.0]

    assert sorted(run.client.texts) == ["a", "a", "a", "bb"]
    assert run.resumable.resumed == 0


def test_no_requests_have_no_answers(journal: Journal) -> None:
    assert Run(journal)() == []


def unused(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages about answers that are not used, up to their explanation, and forget them."""
    messages = [record.getMessage() for record in caplog.records if "they are not used" in record.getMessage()]
    assert all("the model's files, model_args and api.py" in message for message in messages)
    caplog.clear()
    return [message.split(";")[0] for message in messages]


def test_answers_of_other_models_are_counted_once_in_the_log_and_not_used(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = Run(journal)
    first("a", "bb", "ccc")
    first("dddd")
    assert unused(caplog) == []

    changed = Run(journal)
    assert changed("a", "bb", identity="other") == [-1.0, -2.0]
    assert sorted(changed.client.texts) == ["a", "bb"]
    assert unused(caplog) == [f"{journal.path} has 4 answers, none of them to these requests by this model"]
    changed("ccc", identity="other")
    assert unused(caplog) == []

    again = Run(journal)
    again("a", "eeeee")
    again("ffffff")
    assert unused(caplog) == []


def test_no_requests_say_nothing_about_the_journal_of_another_model(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Run(journal)("a")
    assert Run(journal)(identity="other") == []
    assert unused(caplog) == []
