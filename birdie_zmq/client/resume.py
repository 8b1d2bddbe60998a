"""Resuming a run: requests whose answers are in a journal are not sent again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from birdie_zmq.client.client import NameOf, OnAnswer, OnProgress
from birdie_zmq.client.job import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import answer_key
from birdie_zmq.client.request_types import AnswerT, RequestT, RequestType
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer

logger = logging.getLogger("lm_eval.birdie_zmq")


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

    Attributes:
        resumed: Number of requests answered from the journal so far.
    """

    def __init__(self, client: JobRunner, journal: Journal | None, settings: ClientSettings) -> None:
        self._client = client
        self._journal = journal
        self._settings = settings
        self._used: set[str] = set()
        """Identities of the models whose answers this client has found in the journal or recorded."""
        self.resumed = 0

    def run(
        self,
        identity: str,
        request_type: RequestType[RequestT, AnswerT],
        requests: Sequence[RequestT],
        on_answer: OnAnswer,
        name_of: NameOf,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """Return the answers to all requests, in order.

        With a journal, a request that occurs twice in one call is sent once, so that both answers are equal to the last bit,
        now and when the call is repeated.

        Args:
            identity: The model's identity; answers of another model are never used.
            request_type: The type of the requests; an answer of another type is neither read from the journal nor recorded.
            requests: The `content` argument of `answer_key` for each request.
            on_answer: Called with the number and the answer of each request, after the answer is in the journal.
            name_of: Returns the user's name for the request with a number.
            on_progress: Called with the progress of the requests that are sent.

        Raises:
            UsageError: The journal can no longer be read.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        journal = self._journal
        if journal is None:
            jobs = request_type.make_jobs(requests, self._settings)
            return self._client.run(jobs, len(requests), on_answer, name_of, on_progress)
        items_of: dict[str, list[int]] = {}
        for item, request in enumerate(requests):
            items_of.setdefault(answer_key(identity, request_type.name, request), []).append(item)
        answers: dict[int, Answer] = {}

        def deliver(items: Sequence[int], answer: Answer) -> None:
            for item in items:
                answers[item] = answer
                on_answer(item, answer)

        for key, answer in self._recorded(journal, identity, request_type, items_of).items():
            deliver(items_of.pop(key), answer)
        sent = list(items_of.items())

        def receive(number: int, answer: Answer) -> None:
            key, items = sent[number]
            if isinstance(answer, request_type.answer_type):
                journal.append(key, answer)
                self._used.add(identity)
            deliver(items, answer)

        if sent:
            jobs = request_type.make_jobs([requests[items[0]] for _, items in sent], self._settings)
            self._client.run(jobs, len(sent), receive, lambda number: name_of(sent[number][1][0]), on_progress)
        return [answers[item] for item in range(len(requests))]

    def _recorded(
        self,
        journal: Journal,
        identity: str,
        request_type: RequestType[RequestT, AnswerT],
        items_of: Mapping[str, Sequence[int]],
    ) -> dict[str, AnswerT]:
        """Return the answers in the journal by key; count and log how many of the items they answer."""
        found = journal.scan(items_of.keys())
        known: dict[str, AnswerT] = {
            key: answer for key, answer in found.answers.items() if isinstance(answer, request_type.answer_type)
        }
        reused = sum(len(items_of[key]) for key in known)
        self.resumed += reused
        logger.info(
            "%s of %s answers are in %s; they are reused",
            f"{reused:,}",
            f"{sum(map(len, items_of.values())):,}",
            journal.path,
        )
        if known:
            self._used.add(identity)
        elif found.total and items_of and identity not in self._used:
            logger.info(
                "%s has %s answers, none of them to these requests by this model; they are not used. A journal keeps "
                "answers apart by the model's files, model_args and api.py: if you expected to resume, one of these has "
                "changed, or an earlier version of birdie-zmq wrote the journal",
                journal.path,
                f"{found.total:,}",
            )
        return known
