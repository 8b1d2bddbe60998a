"""Requests to a model, less those that a journal has the answers to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from birdie_zmq.client.client import Answer, NameOf, OnAnswer, OnProgress
from birdie_zmq.client.core import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import Recorded, answer_key
from birdie_zmq.settings import ClientSettings

logger = logging.getLogger("birdie_zmq.client")

C = TypeVar("C")


class Asks(Protocol):
    """Whoever has requests answered: `birdie_zmq.client.Client`, or a model of this process."""

    def run(
        self,
        jobs: Iterable[Job],
        count: int,
        on_answer: OnAnswer | None = None,
        name_of: NameOf = ...,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """The answers to all items of some jobs, as `birdie_zmq.client.Client.run` gives them."""
        ...


class ResumableClient:
    """A client that asks only what the journal does not answer, and writes down what it is told.

    Args:
        client: Who asks.
        journal: Where answers are kept; None to ask everything.
        settings: The size of batches.
        log: Where lines for the person at the prompt go.

    Attributes:
        resumed: How many requests were answered by the journal so far.
    """

    def __init__(
        self, client: Asks, journal: Journal | None, settings: ClientSettings, log: logging.Logger = logger
    ) -> None:
        self._client = client
        self._journal = journal
        self._settings = settings
        self._log = log
        self.resumed = 0

    def run(
        self,
        identity: str,
        kind: str,
        asked: Sequence[C],
        jobs_of: Callable[[Sequence[C], ClientSettings], Iterable[Job]],
        expected: type[Recorded],
        on_answer: OnAnswer,
        name_of: NameOf,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """The answers to all that is asked, in order.

        With a journal, what is asked twice in one call is sent once, so that both answers are equal to the last bit now
        and when the call is made again.

        Args:
            identity: The model's; answers of another model are never taken.
            kind: lm_eval's name for the kind of request.
            asked: What `answer_key` takes as a content, for each request.
            jobs_of: Makes jobs of a part of them, such as `birdie_zmq.client.batching.rolling_jobs`.
            expected: The type of an answer; any other is neither taken from the journal nor written down.
            on_answer: Called with the number and the answer of each request, after the answer is in the journal.
            name_of: What a person calls the request of a number.
            on_progress: Told how far what is asked has come.

        Raises:
            UsageError: The journal can no longer be read.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        journal = self._journal
        if journal is None:
            return self._client.run(jobs_of(asked, self._settings), len(asked), on_answer, name_of, on_progress)
        keys = [answer_key(identity, kind, each) for each in asked]
        known = {key: answer for key, answer in journal.find(set(keys)).items() if isinstance(answer, expected)}
        items_of: dict[str, list[int]] = {}
        for item, key in enumerate(keys):
            items_of.setdefault(key, []).append(item)
        sent = [(key, items) for key, items in items_of.items() if key not in known]
        missing = sum(len(items) for _, items in sent)
        self.resumed += len(asked) - missing
        self._log.info(
            "%s of %s answers are in %s from before", f"{len(asked) - missing:,}", f"{len(asked):,}", journal.path
        )

        answers: dict[int, Answer] = {}

        def give(items: Sequence[int], answer: Answer) -> None:
            for item in items:
                answers[item] = answer
                on_answer(item, answer)

        def receive(number: int, answer: Answer) -> None:
            key, items = sent[number]
            if isinstance(answer, expected):
                journal.append(key, answer)
            give(items, answer)

        for key, answer in known.items():
            give(items_of[key], answer)
        if sent:
            jobs = jobs_of([asked[items[0]] for _, items in sent], self._settings)
            self._client.run(jobs, len(sent), receive, lambda number: name_of(sent[number][1][0]), on_progress)
        return [answers[item] for item in range(len(asked))]
