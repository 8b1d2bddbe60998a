"""Hands prompts to the lane that they belong to, and waits for their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from birdie_zmq.client.resume import JobStreamer
from birdie_zmq.completions import Completion, CompletionParams, CompletionPrompt
from birdie_zmq.serve.api_error import invalid
from birdie_zmq.serve.lane import Health, Lane
from birdie_zmq.serve.settings import ServeSettings
from birdie_zmq.serve.waiting import WaitingPrompt

PartHandler = Callable[[int, Completion], None]
"""Takes the number of a prompt, and what there is of its answer so far."""


class Dispatcher:
    """The lanes of a server.

    Args:
        client: Makes a client for a lane.
        settings: The limits.
        health: Is told of failures, and asked for a sign of life while nothing is to do.
    """

    def __init__(self, client: Callable[[], JobStreamer], settings: ServeSettings, health: Health) -> None:
        self._settings = settings
        self.scoring = Lane("scoring", client(), settings, health)
        self.generation = Lane("generation", client(), settings, _Calls(health), self._interrupts)

    def start(self) -> None:
        """Start the lanes."""
        self.scoring.start()
        self.generation.start()

    def close(self) -> None:
        """End the lanes."""
        for lane in (self.scoring, self.generation):
            lane.queue.close()
        for lane in (self.scoring, self.generation):
            lane.close()

    def _interrupts(self, running_s: float) -> bool:
        """Return whether a generation that has run for a time has to let others have a turn."""
        turn_s, now = self._settings.turn_s, time.monotonic()
        waiting_s = max(self.scoring.waiting_s(now), self.generation.queue.oldest_s(now))
        return running_s > turn_s and waiting_s > turn_s

    async def complete(
        self, prompts: Sequence[CompletionPrompt], params: CompletionParams, on_part: PartHandler | None = None
    ) -> list[Completion]:
        """Return the answers to prompts with the same parameters; if the caller is cancelled, so is their work.

        Raises:
            ApiError: A prompt cannot be answered.
            BirdieError: The model failed, or is not available.
        """
        loop = asyncio.get_running_loop()
        is_scored = all(prompt.max_tokens <= 1 for prompt in prompts)
        lane = self.scoring if is_scored else self.generation
        items = [
            WaitingPrompt(prompt, params, loop.create_future(), _handler(on_part, number))
            for number, prompt in enumerate(prompts)
        ]
        lane.queue.put(items)
        try:
            completions = await asyncio.gather(*(item.future for item in items))
        finally:
            for item in items:
                item.is_cancelled = True  # of no effect once it is answered
        for completion in completions:
            if completion.error is not None:
                raise invalid(completion.error, "prompt")
        return completions

    async def encode(self, text: str, *, add_special_tokens: bool) -> Completion:
        """Return the tokens of a text, without computing anything.

        Raises:
            ApiError: The text cannot be encoded.
            BirdieError: The worker is not available.
        """
        params = CompletionParams(add_special_tokens=add_special_tokens, with_texts=True)
        (completion,) = await self.complete([CompletionPrompt(text=text)], params)
        return completion

    async def decode(self, prompt: CompletionPrompt) -> Completion:
        """Return the text of token ids, as `encode` does their tokens."""
        (completion,) = await self.complete([prompt], CompletionParams(with_texts=True))
        return completion


def _handler(on_part: PartHandler | None, number: int) -> Callable[[Completion], None] | None:
    return None if on_part is None else lambda part: on_part(number, part)


class _Calls:
    """Tells of failed calls, and leaves the probing to the other lane."""

    def __init__(self, health: Health) -> None:
        self.failed = health.failed
        self.answered = health.answered

    def probe(self) -> None:
        """Do nothing."""
