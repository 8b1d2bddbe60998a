"""From the requests of one lm_eval call to jobs: what belongs together stands together, in messages of bounded size.

Items are sorted by length, longest first, so that a batch pads little and a text that does not fit shows early; equal
contexts stay neighbours, so that the worker can compute them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from birdie_zmq.client.state import Job
from birdie_zmq.config import ClientSettings
from birdie_zmq.wire import messages as m


def loglikelihood_jobs(pairs: Sequence[tuple[str, str]], settings: ClientSettings) -> Iterator[Job]:
    """Jobs for ``(context, continuation)`` pairs."""
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), pairs[i][0], -len(pairs[i][1])))
    for items in _cut(order, lambda i: sum(map(len, pairs[i])), settings):
        yield Job(m.LogLikelihoodWork(pairs=[pairs[i] for i in items]), items)


def rolling_jobs(texts: Sequence[str], settings: ClientSettings) -> Iterator[Job]:
    """Jobs for whole texts."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for items in _cut(order, lambda i: len(texts[i]), settings):
        yield Job(m.RollingWork(texts=[texts[i] for i in items]), items)


def generate_jobs(prompts: Sequence[tuple[str, m.GenerationSettings]], settings: ClientSettings) -> Iterator[Job]:
    """Jobs for prompts, those with the same settings together."""
    by_settings: dict[m.GenerationSettings, list[int]] = {}
    for i, (_, how) in enumerate(prompts):
        by_settings.setdefault(how, []).append(i)
    for how, group in by_settings.items():
        order = sorted(group, key=lambda i: -len(prompts[i][0]))
        for items in _cut(order, lambda i: len(prompts[i][0]), settings):
            yield Job(m.GenerateWork(prompts=[prompts[i][0] for i in items], settings=how), items)


def _cut(order: Sequence[int], size: Callable[[int], int], settings: ClientSettings) -> Iterator[list[int]]:
    """Cut numbers into runs that stay within a message's items and characters; one that is over by itself goes alone."""
    run: list[int] = []
    characters = 0
    for i in order:
        if run and (len(run) >= settings.batch_items or characters + size(i) > settings.batch_characters):
            yield run
            run, characters = [], 0
        run.append(i)
        characters += size(i)
    if run:
        yield run
