"""A model that a test decides on, in place of a worker: one token for each byte of a text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np

from birdie_zmq.client.actions import Deliver, DeliverParts
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.client.progress import Progress
from birdie_zmq.completions import Completion, CompletionParams, CompletionPrompt, CompletionWork, TokenLogprobs
from birdie_zmq.errors import BirdieError
from birdie_zmq.types import ChatTemplates, ModelDescription, ModelSpec, RunStatistics

VOCABULARY = 256
MAX_LENGTH = 64
ANSWER = b" yes, it is"
"""What the model says after every prompt."""

DESCRIPTION = ModelDescription(
    model=ModelSpec(tag="tiny"),
    identity="0",
    api="",
    api_sha256="",
    num_parameters=None,
    dtype=None,
    vocab_size=VOCABULARY,
    max_length=MAX_LENGTH,
    bos_token_id=None,
    eos_token_id=0,
    engine="fake",
    devices=[],
    versions={},
    chat=ChatTemplates(
        templates={
            "default": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}"
        }
    ),
    report=RunStatistics(),
    process_id=1,
    start_count=1,
)


def packed(ids: Iterable[int]) -> bytes:
    return np.array(list(ids), "<i4").tobytes()


def logprobs_of(count: int, top: int | None) -> TokenLogprobs | None:
    """Token i has the log-probability -i - 1; the likeliest are the tokens 0, 1, …, at -0.5, -1.5, …"""
    if top is None:
        return None
    own = -np.arange(1, count + 1, dtype="<f4")
    likeliest = -np.arange(top, dtype="<f4") - 0.5
    ids = np.tile(np.arange(top, dtype="<i4"), count)
    values = np.tile(likeliest, count).astype("<f4")
    return TokenLogprobs(top=top, logprobs=own.tobytes(), top_ids=ids.tobytes(), top_logprobs=values.tobytes())


def completion(prompt: CompletionPrompt, params: CompletionParams, count: int | None = None) -> Completion:
    """Return the answer to a prompt, or its first `count` tokens as a part."""
    ids = list(prompt.text.encode()) if prompt.text is not None else np.frombuffer(prompt.ids, "<i4").tolist()
    done = len(prompt.generated) // 4
    tokens = list(ANSWER[done : done + prompt.max_tokens])
    is_whole = count is None
    tokens = tokens if count is None else tokens[:count]
    texts = [chr(id) for id in range(VOCABULARY)]
    return Completion(
        prompt_ids=packed(ids) if is_whole else b"",
        prompt_text=bytes(ids).decode("latin-1") if is_whole else "",
        ids=packed(tokens),
        text=(ANSWER[:done] + bytes(tokens)).decode(),
        finish_reason=("stop" if done + len(tokens) == len(ANSWER) else "length") if is_whole else None,
        prompt_logprobs=logprobs_of(len(ids) - 1, params.prompt_logprobs) if is_whole else None,
        logprobs=logprobs_of(len(tokens), params.logprobs),
        token_ids=packed(range(VOCABULARY)),
        token_texts=texts,
    )


Script = Callable[[list[Job]], Generator[CallEvent, None, None]]


def answering(jobs: list[Job]) -> Generator[CallEvent, None, None]:
    """Answer all prompts, in parts where they are wanted."""
    for job in jobs:
        assert isinstance(job.work, CompletionWork)
        params = job.work.params
        for item, prompt in zip(job.items, job.work.prompts, strict=True):
            if params.part_tokens:
                for count in range(1, prompt.max_tokens, params.part_tokens):
                    yield DeliverParts([item], [completion(prompt, params, count)])
            yield Deliver([item], [completion(prompt, params)])


class FakeClient:
    """A client whose calls follow scripts; without one left, all prompts are answered."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.calls: list[list[Job]] = []
        self.closed_early = threading.Event()

    def stream(self, jobs: Iterable[Job], *, with_progress: bool = False) -> Generator[CallEvent, None, None]:
        assert with_progress
        self.calls.append(list(jobs))
        script = self.scripts.pop(0) if self.scripts else answering
        try:
            yield from script(self.calls[-1])
        except GeneratorExit:
            self.closed_early.set()
            raise

    @property
    def prompts(self) -> list[list[CompletionPrompt]]:
        """The prompts of each call."""
        return [
            [prompt for job in call if isinstance(job.work, CompletionWork) for prompt in job.work.prompts]
            for call in self.calls
        ]


def until(event: threading.Event) -> Script:
    """Yield progress, as a client does while it waits, until an event; then answer."""

    def script(jobs: list[Job]) -> Generator[CallEvent, None, None]:
        while not event.wait(0.001):
            yield Progress()
        yield from answering(jobs)

    return script


def failing(error: BirdieError) -> Script:
    def script(jobs: list[Job]) -> Generator[CallEvent, None, None]:
        del jobs
        yield Progress()
        raise error

    return script


class FakeConnection:
    """What is known of the model."""

    def __init__(self) -> None:
        self.description: Any = DESCRIPTION
        self.error: BirdieError | None = None
        self.failures: list[BirdieError] = []

    def probe(self) -> None:
        pass

    def failed(self, error: BirdieError) -> None:
        self.failures.append(error)

    def answered(self) -> None:
        pass
