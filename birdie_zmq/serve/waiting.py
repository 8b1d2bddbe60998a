"""Prompts that wait for a worker: what the event loop hands to a lane, and gets back from it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from birdie_zmq.completions import Completion, CompletionParams, CompletionPrompt
from birdie_zmq.errors import BirdieError


@dataclass(eq=False)
class WaitingPrompt:
    """A prompt of a request, from its arrival until its answer.

    Attributes:
        prompt: The prompt; after an interruption, with the tokens that it has by then.
        params: The parameters.
        future: Gets the answer, or the error; belongs to the event loop.
        on_part: Called in the event loop with each part of the answer; None if none are wanted.
        arrived_at: The time of arrival, in monotonic seconds.
        is_cancelled: Whether nobody waits for the answer any more; set in the event loop, read in a lane.
        part: What the current call has given so far.
        earlier: What calls before that have given.
    """

    prompt: CompletionPrompt
    params: CompletionParams
    future: asyncio.Future[Completion]
    on_part: Callable[[Completion], None] | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False
    part: Completion | None = None
    earlier: Completion | None = None

    def answer(self, completion: Completion) -> None:
        """Give the answer; called in any thread."""
        self._call(lambda: None if self.future.done() else self.future.set_result(completion))

    def fail(self, error: BirdieError) -> None:
        """Give an error; called in any thread."""
        self._call(lambda: None if self.future.done() else self.future.set_exception(error))

    def show_part(self, part: Completion) -> None:
        """Give a part of the answer; called in any thread."""
        if self.on_part is not None:
            on_part = self.on_part
            self._call(lambda: None if self.future.done() else on_part(part))

    def _call(self, function: Callable[[], object]) -> None:
        loop = self.future.get_loop()
        if not loop.is_closed():  # the server is shutting down
            loop.call_soon_threadsafe(function)


class WaitingQueue:
    """The prompts that wait for a lane; used by the event loop and by the lane's thread."""

    def __init__(self) -> None:
        self._items: deque[WaitingPrompt] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, items: list[WaitingPrompt], *, first: bool = False) -> None:
        """Add prompts behind the others, or before them."""
        with self._changed:
            if first:
                self._items.extendleft(reversed(items))
            else:
                self._items.extend(items)
            self._changed.notify()

    def close(self) -> None:
        """Wake the lane, which then ends."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    @property
    def is_closed(self) -> bool:
        """Whether the server is shutting down."""
        return self._is_closed

    def wait(self, timeout_s: float) -> bool:
        """Wait until a prompt is there, or the queue is closed; return False after the time is up."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items) or self._is_closed, timeout_s)

    def settle(self, expected: int, quiet_s: float, most_s: float) -> None:
        """Wait until a number of prompts is there, or none has arrived for a time.

        Args:
            expected: The number of prompts.
            quiet_s: That time in seconds.
            most_s: The longest wait in seconds.
        """
        deadline = time.monotonic() + most_s
        with self._changed:
            while len(self._items) < expected and not self._is_closed and time.monotonic() < deadline:
                if not self._changed.wait(quiet_s):
                    return

    def take(self, count: int) -> list[WaitingPrompt]:
        """Remove and return the first prompts that somebody still waits for."""
        taken: list[WaitingPrompt] = []
        with self._changed:
            while self._items and len(taken) < count:
                item = self._items.popleft()
                if not item.is_cancelled:
                    taken.append(item)
        return taken

    def oldest_s(self, now: float) -> float:
        """Return how long the first prompt has waited, in seconds; 0 if there is none."""
        with self._changed:
            return now - self._items[0].arrived_at if self._items else 0.0
