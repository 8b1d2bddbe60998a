"""Resuming a run: requests whose answers are in a journal are not sent again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from birdie_zmq.client.actions import Deliver, DeliverParts, FailItem, ReportProgress
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import answer_key
from birdie_zmq.client.progress import Progress
from birdie_zmq.client.request_types import AnswerT, RequestT, RequestType
from birdie_zmq.settings import ClientSettings

logger = logging.getLogger("lm_eval.birdie_zmq")


class JobStreamer(Protocol):
    """The interface of an object that computes jobs: `birdie_zmq.client.Client`, or an in-process client."""

    def stream(self, jobs: Iterable[Job], *, with_progress: bool = False) -> Generator[CallEvent, None, None]:
        """Yield the answers to all items of some jobs, as `birdie_zmq.client.Client.stream` does."""
        ...


class ResumableClient:
    """A client that sends only the requests without an answer in the journal, and records the new answers.

    Args:
        client: The client that computes the jobs.
        journal: The journal of answers; None to send every request.
        settings: The batch sizes.

    Attributes:
        resumed: Number of requests answered from the journal so far.
    """

    def __init__(self, client: JobStreamer, journal: Journal | None, settings: ClientSettings) -> None:
        self._client = client
        self._journal = journal
        self._settings = settings
        self._used: set[str] = set()
        """Identities of the models whose answers this client has found in the journal or recorded."""
        self.resumed = 0

    def stream(
        self,
        identity: str,
        request_type: RequestType[RequestT, AnswerT],
        requests: Sequence[RequestT],
        *,
        with_progress: bool = False,
    ) -> Generator[CallEvent, None, None]:
        """Yield the answers to all requests, by number; each is in the journal before.

        With a journal, a request that occurs twice in one call is sent once, so that both answers are equal to the last bit,
        now and when the call is repeated.

        Args:
            identity: The model's identity; answers of another model are never used.
            request_type: The type of the requests; an answer of another type is neither read from the journal nor recorded.
            requests: The `content` argument of `answer_key` for each request.
            with_progress: Whether to yield the progress of the requests that are sent as well.

        Raises:
            UsageError: The journal can no longer be read.
            BirdieError: As `birdie_zmq.client.Client.stream`.
        """
        journal = self._journal
        if journal is None:
            yield from self._send(request_type.make_jobs(requests, self._settings), with_progress)
            return
        items_of: dict[str, list[int]] = {}
        for item, request in enumerate(requests):
            items_of.setdefault(answer_key(identity, request_type.name, request), []).append(item)
        for key, recorded in self._recorded(journal, identity, request_type, items_of).items():
            items = items_of.pop(key)
            yield Deliver(items, [recorded] * len(items))
        sent = list(items_of.items())
        jobs = request_type.make_jobs([requests[items[0]] for _, items in sent], self._settings)
        for event in self._send(jobs, with_progress) if sent else ():
            match event:
                case Deliver(numbers, answers):
                    for number, answer in zip(numbers, answers, strict=True):
                        key, items = sent[number]
                        if isinstance(answer, request_type.answer_type):
                            journal.append(key, answer)
                            self._used.add(identity)
                        yield Deliver(items, [answer] * len(items))
                case FailItem(number, error):
                    yield FailItem(sent[number][1][0], error)
                case DeliverParts() | Progress() | ReportProgress():
                    yield event

    def _send(self, jobs: Iterable[Job], with_progress: bool) -> Iterator[CallEvent]:
        with contextlib.closing(self._client.stream(jobs, with_progress=with_progress)) as events:
            yield from events

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
