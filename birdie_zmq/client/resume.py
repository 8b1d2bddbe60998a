"""Resuming a run: requests whose answers are in a journal are not sent again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from birdie_zmq.client.client import NameOf, OnAnswer, OnProgress
from birdie_zmq.client.core import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import RecordedAnswer, answer_key
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer

logger = logging.getLogger("birdie_zmq.client")

C = TypeVar("C")


class JobRunner(Protocol):
    """The interface of an object that runs jobs: `birdie_zmq.client.Client`, or an in-process client."""

    def run(
        self,
        jobs: Iterable[Job],
        count: int,
        on_answer: OnAnswer | None = None,
        name_of: NameOf = ...,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """Return the answers to all items of some jobs, as `birdie_zmq.client.Client.run` does."""
        ...


class ResumableClient:
    """A client that sends only the requests without an answer in the journal, and records the new answers.

    Args:
        client: The client that runs the jobs.
        journal: The journal of answers; None to send every request.
        settings: The batch sizes.
        log: The logger for messages to the user.

    Attributes:
        resumed: Number of requests answered from the journal so far.
    """

    def __init__(
        self, client: JobRunner, journal: Journal | None, settings: ClientSettings, log: logging.Logger = logger
    ) -> None:
        self._client = client
        self._journal = journal
        self._settings = settings
        self._log = log
        self._used: set[str] = set()
        """Identities of the models whose answers this client has found in the journal or recorded."""
        self.resumed = 0

    def run(
        self,
        identity: str,
        kind: str,
        requests: Sequence[C],
        jobs_of: Callable[[Sequence[C], ClientSettings], Iterable[Job]],
        expected: type[RecordedAnswer],
        on_answer: OnAnswer,
        name_of: NameOf,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """Return the answers to all requests, in order.

        With a journal, a request that occurs twice in one call is sent once, so that both answers are equal to the last bit,
        now and when the call is repeated.

        Args:
            identity: The model's identity; answers of another model are never used.
            kind: lm_eval's name for the request type.
            requests: The `content` argument of `answer_key` for each request.
            jobs_of: Makes jobs from some of the requests, such as `birdie_zmq.client.batching.rolling_jobs`.
            expected: The type of an answer; any other type is neither read from the journal nor recorded.
            on_answer: Called with the number and the answer of each request, after the answer is in the journal.
            name_of: Returns the user's name for the request with a number.
            on_progress: Called with the progress of the requests that are sent.

        Raises:
            UsageError: The journal can no longer be read.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        journal = self._journal
        if journal is None:
            return self._client.run(jobs_of(requests, self._settings), len(requests), on_answer, name_of, on_progress)
        keys = [answer_key(identity, kind, each) for each in requests]
        found = journal.scan(set(keys))
        known = {key: answer for key, answer in found.answers.items() if isinstance(answer, expected)}
        items_of: dict[str, list[int]] = {}
        for item, key in enumerate(keys):
            items_of.setdefault(key, []).append(item)
        sent = [(key, items) for key, items in items_of.items() if key not in known]
        missing = sum(len(items) for _, items in sent)
        self.resumed += len(requests) - missing
        self._log.info(
            "%s of %s answers are in %s; they are reused",
            f"{len(requests) - missing:,}",
            f"{len(requests):,}",
            journal.path,
        )
        if known:
            self._used.add(identity)
        elif found.total and keys and identity not in self._used:
            self._log.info(
                "%s has %s answers, none of them to these requests by this model; they are not used. A journal keeps "
                "answers apart by the model's files, model_args and api.py: if you expected to resume, one of these has "
                "changed, or an earlier version of birdie-zmq wrote the journal",
                journal.path,
                f"{found.total:,}",
            )

        answers: dict[int, Answer] = {}

        def deliver(items: Sequence[int], answer: Answer) -> None:
            for item in items:
                answers[item] = answer
                on_answer(item, answer)

        def receive(number: int, answer: Answer) -> None:
            key, items = sent[number]
            if isinstance(answer, expected):
                journal.append(key, answer)
                self._used.add(identity)
            deliver(items, answer)

        for key, answer in known.items():
            deliver(items_of[key], answer)
        if sent:
            jobs = jobs_of([requests[items[0]] for _, items in sent], self._settings)
            self._client.run(jobs, len(sent), receive, lambda number: name_of(sent[number][1][0]), on_progress)
        return [answers[item] for item in range(len(requests))]
