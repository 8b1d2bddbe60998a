"""A lane: a thread with a client of its own, which sends what waits as one call, and collects the next meanwhile.

There are two lanes. One is for prompts that take one forward pass, so that few-shot prefixes that many of them share are
planned together; the other is for generation. A worker computes the calls of both in turn. A generation may take minutes:
it is interrupted once prompts of either lane have waited for ``turn_s``, and continued afterwards from the tokens that it
has by then.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from birdie_zmq.client.actions import Deliver, DeliverParts, FailItem, ReportProgress
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.client.resume import JobStreamer
from birdie_zmq.completions import Completion, CompletionParams, CompletionWork
from birdie_zmq.errors import BirdieError, InternalError
from birdie_zmq.serve.fault_log import log_fault
from birdie_zmq.serve.settings import ServeSettings
from birdie_zmq.serve.waiting import WaitingPrompt, WaitingQueue
from birdie_zmq.types import ComputeCounters

logger = logging.getLogger("birdie_zmq.serve")


_END_S = 10.0
"""Seconds that a lane may take to give up its call."""


_STEADY_S = 0.5
"""Seconds after a call in which as many prompts are expected as it had."""


class Health(Protocol):
    """What a lane tells of the model's process."""

    def probe(self) -> None:
        """Ask for a sign of life; called while the lane is idle."""
        ...

    def failed(self, error: BirdieError) -> None:
        """Note that a call failed."""
        ...

    def answered(self) -> None:
        """Note that a call was answered."""
        ...


class Lane:
    """A thread that answers prompts.

    Args:
        name: The name of the lane, for its thread.
        client: The client; only this thread uses it.
        settings: The limits.
        health: Is told of failures.
        interrupts: Returns whether a call is to be interrupted some seconds after its first tokens; None never does.

    Attributes:
        queue: The prompts that wait.
        calls: The number of calls so far.
        prompts: The number of prompts of these calls.
        interruptions: The number of interrupted calls.
        computed: What workers have computed for these calls, as far as they have reported it.
    """

    def __init__(
        self,
        name: str,
        client: JobStreamer,
        settings: ServeSettings,
        health: Health,
        interrupts: Callable[[float], bool] | None = None,
    ) -> None:
        self.queue = WaitingQueue()
        self.calls = self.prompts = self.interruptions = 0
        self.computed = ComputeCounters()
        self._unanswered_since: float | None = None
        self._client = client
        self._settings = settings
        self._health = health
        self._interrupts = interrupts
        self._thread = threading.Thread(target=self._run, name=f"lane {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def waiting_s(self, now: float) -> float:
        """Return how long prompts have waited: those in the queue, and those of a call that has no answer yet."""
        sent_at = self._unanswered_since
        return max(self.queue.oldest_s(now), 0.0 if sent_at is None else now - sent_at)

    def close(self) -> None:
        """End the thread; a call that runs is given up."""
        self.queue.close()
        if self._thread.ident is not None:
            self._thread.join(_END_S)

    def _run(self) -> None:
        settings = self._settings
        expected, ended_at = 0, -math.inf
        while not self.queue.is_closed:
            if not self.queue.wait(settings.probe_s):
                self._health.probe()
                continue
            # Clients that were answered together also ask together: the call waits for as many prompts as the last one had.
            is_steady = time.monotonic() - ended_at < _STEADY_S
            self.queue.settle(
                expected if is_steady else settings.call_items, settings.collect_s, settings.most_collect_s
            )
            items = self.queue.take(settings.call_items)
            if items:
                self._answer(items)
                expected, ended_at = len(items), time.monotonic()

    def _answer(self, items: list[WaitingPrompt]) -> None:
        """Answer prompts, fail them, or queue them again."""
        self.calls += 1
        self.prompts += len(items)
        self._unanswered_since = time.monotonic()
        waiting = dict(enumerate(items))
        try:
            with contextlib.closing(
                self._client.stream(_jobs(items, self._settings.batch_items), with_progress=True)
            ) as events:
                is_whole = self._follow(events, waiting)
        except BirdieError as error:
            self._fail(waiting, error)
            return
        except Exception as error:  # noqa: BLE001 - a fault ends no lane
            log_fault(logger, "a call failed", error)
            self._fail(waiting, InternalError(f"a call failed with {type(error).__name__}"))
            return
        finally:
            self._unanswered_since = None
        if is_whole:
            self._health.answered()
            self._fail(waiting, InternalError("a call ended without all answers"))
        else:
            self.interruptions += 1
            self.queue.put([_continued(item) for item in waiting.values() if not item.is_cancelled], first=True)

    def _follow(self, events: Iterator[CallEvent], waiting: dict[int, WaitingPrompt]) -> bool:
        """Hand out what a call gives; return False if it is to be given up, which needs some progress."""
        began: float | None = None
        for event in events:
            if began is None and isinstance(event, Deliver | DeliverParts):
                began, self._unanswered_since = time.monotonic(), None
            match event:
                case ReportProgress(computed):  # before the answers, so that a client that has them sees it
                    self.computed += computed
                case Deliver(items, answers):
                    for number, answer in zip(items, answers, strict=True):
                        assert isinstance(answer, Completion)
                        self._deliver(waiting, number, answer)
                case DeliverParts(items, parts):
                    for number, part in zip(items, parts, strict=True):
                        if isinstance(part, Completion) and number in waiting:
                            _show(waiting[number], part)
                case FailItem(number, error):
                    if number in waiting:
                        waiting.pop(number).fail(error)
            if not waiting:
                continue
            if self.queue.is_closed or all(item.is_cancelled for item in waiting.values()):
                return False
            if began is not None and self._interrupts is not None and self._interrupts(time.monotonic() - began):
                return False
        return True

    def _deliver(self, waiting: dict[int, WaitingPrompt], number: int, answer: Completion) -> None:
        item = waiting.pop(number)
        if item.part is not None and not answer.ids.startswith(item.part.ids):
            # A retry after a worker died has chosen another of two tokens that are about equally likely, and the client has
            # seen the first: the answer is continued from what it has seen.
            self.queue.put([_continued(item)], first=True)
            return
        item.answer(_whole(item, answer))

    def _fail(self, waiting: dict[int, WaitingPrompt], error: BirdieError) -> None:
        if waiting:
            self._health.failed(error)
        for item in waiting.values():
            item.fail(error)


def _show(item: WaitingPrompt, part: Completion) -> None:
    """Note a part of an answer, and show it if it continues what was shown."""
    seen = item.part
    if seen is not None and (len(part.ids) <= len(seen.ids) or not part.ids.startswith(seen.ids)):
        return  # of a retry, which begins anew
    item.part = part
    item.show_part(_whole(item, part))


def _continued(item: WaitingPrompt) -> WaitingPrompt:
    """Return a prompt that continues after the tokens of the call that was given up."""
    if item.part is not None and item.part.ids:
        done = item.part
        prompt = item.prompt
        item.earlier = _whole(item, done)
        item.prompt = msgspec.structs.replace(
            prompt, generated=prompt.generated + done.ids, max_tokens=prompt.max_tokens - len(done.ids) // 4
        )
        item.part = None
    return item


def _whole(item: WaitingPrompt, answer: Completion) -> Completion:
    """Return an answer together with what earlier calls gave."""
    return answer if item.earlier is None else item.earlier.followed_by(answer)


def _jobs(items: Sequence[WaitingPrompt], batch_items: int) -> list[Job]:
    """Return jobs for prompts, those with equal parameters together."""
    groups: dict[bytes, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(msgspec.msgpack.encode(item.params), []).append(number)
    jobs = []
    for numbers in groups.values():
        numbers.sort(key=lambda number: items[number].prompt.ids or (items[number].prompt.text or "").encode())
        params: CompletionParams = items[numbers[0]].params
        for begin in range(0, len(numbers), batch_items):
            chosen = numbers[begin : begin + batch_items]
            prompts = [items[number].prompt for number in chosen]
            characters = sum(len(prompt.ids) + len(prompt.text or "") for prompt in prompts)
            jobs.append(Job(CompletionWork(prompts=prompts, params=params), chosen, characters=characters))
    return jobs
