"""What the journal lacks is sent once, written down first and told then, under the caller's own numbers and names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest

from birdie_zmq.client.batching import rolling_jobs
from birdie_zmq.client.client import Answer, Client, NameOf, OnAnswer, OnProgress
from birdie_zmq.client.core import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import answer_key
from birdie_zmq.client.resume import ResumableClient
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import RollingWork

SETTINGS = ClientSettings(batch_items=2)


class Asked:
    """Stands where a client does: answers a text by its length, or as a test wants it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.names: list[str] = []
        self.answer: Callable[[str], Answer] = lambda text: -float(len(text))

    def run(
        self,
        jobs: Iterable[Job],
        count: int,
        on_answer: OnAnswer,
        name_of: NameOf,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        assert on_progress is None
        answers: dict[int, Answer] = {}
        for job in jobs:
            assert isinstance(job.work, RollingWork)
            for text, item in zip(job.work.texts, job.items, strict=True):
                self.texts.append(text)
                self.names.append(name_of(item))
                answers[item] = self.answer(text)
                on_answer(item, answers[item])
        assert sorted(answers) == list(range(count))
        return [answers[item] for item in range(count)]


class Run:
    """One run of a program, with the journal if it has one."""

    def __init__(self, journal: Journal | None) -> None:
        self.asked = Asked()
        self.told: dict[int, Answer] = {}
        self.resuming = ResumableClient(cast(Client, self.asked), journal, SETTINGS)

    def __call__(self, *texts: str) -> list[Answer]:
        return self.resuming.run(
            "identity", "loglikelihood_rolling", texts, rolling_jobs, float, self.told.__setitem__, "text {}".format
        )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


def kept(journal: Journal, *texts: str) -> list[str]:
    """Those texts whose answers are in the file."""
    keys = {answer_key("identity", "loglikelihood_rolling", text): text for text in texts}
    return sorted(keys[key] for key in journal.find(set(keys)))


def test_answers_come_in_order_whether_they_were_known_or_not(journal: Journal) -> None:
    Run(journal)("bb", "dddd")
    second = Run(journal)

    assert second("a", "bb", "ccc", "dddd", "eeeee") == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert second.told == dict(enumerate([-1.0, -2.0, -3.0, -4.0, -5.0]))
    assert sorted(second.asked.texts) == ["a", "ccc", "eeeee"]
    assert second.resuming.resumed == 2


def test_what_is_said_of_a_request_has_the_callers_number(journal: Journal) -> None:
    Run(journal)("a")
    second = Run(journal)
    second("a", "bb", "bb", "ccc")

    assert dict(zip(second.asked.texts, second.asked.names, strict=True)) == {"bb": "text 1", "ccc": "text 3"}


def test_equal_requests_are_asked_once_and_each_is_told(journal: Journal) -> None:
    first = Run(journal)
    assert first("a", "bb", "a", "a") == [-1.0, -2.0, -1.0, -1.0]
    second = Run(journal)
    assert second("a", "a") == [-1.0, -1.0]

    assert sorted(first.asked.texts) == ["a", "bb"]
    assert first.told == {0: -1.0, 1: -2.0, 2: -1.0, 3: -1.0}
    assert second.asked.texts == []
    assert (first.resuming.resumed, second.resuming.resumed) == (0, 2)
    assert len(journal.path.read_bytes().splitlines()) == 3


def test_an_answer_is_in_the_file_before_anybody_is_told(journal: Journal) -> None:
    run = Run(journal)
    in_time: list[bool] = []
    run.resuming.run(
        "identity",
        "loglikelihood_rolling",
        ["a", "bb"],
        rolling_jobs,
        float,
        lambda item, _: in_time.append(kept(journal, ["a", "bb"][item]) != []),
        str,
    )

    assert in_time == [True, True]


def test_what_was_answered_before_an_error_is_kept(journal: Journal) -> None:
    run = Run(journal)

    def fail_at_one(text: str) -> Answer:
        if text == "a":
            raise RuntimeError("no")
        return -float(len(text))

    run.asked.answer = fail_at_one
    with pytest.raises(RuntimeError):
        run("a", "bb", "ccc")

    assert kept(journal, "a", "bb", "ccc") == ["bb", "ccc"]  # the longest are asked first


def test_an_answer_of_another_type_is_neither_kept_nor_taken(journal: Journal) -> None:
    run = Run(journal)
    run.asked.answer = lambda text: "no number"
    assert run("a") == ["no number"]
    assert kept(journal, "a") == []

    journal.append(answer_key("identity", "loglikelihood_rolling", "a"), "no number")
    again = Run(journal)
    assert again("a") == [-1.0]
    assert again.asked.texts == ["a"]


def test_without_a_journal_everything_is_asked_each_time() -> None:
    run = Run(None)
    assert run("a", "a", "bb") == [-1.0, -1.0, -2.0]
    assert run("a") == [-1.0]

    assert sorted(run.asked.texts) == ["a", "a", "a", "bb"]
    assert run.asked.names[0] == "text 2"
    assert run.resuming.resumed == 0


def test_nothing_asked_is_nothing_answered(journal: Journal) -> None:
    assert Run(journal)() == []
