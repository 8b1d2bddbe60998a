"""From the requests of one lm_eval call to jobs: what belongs together stands together, in messages of bounded size.

Texts to be scored are sorted by length, longest first, so that one that does not fit shows early; equal contexts stay
neighbours, so that the worker can compute them once. Those with a long beginning in common, such as the few-shot examples
of a task, come one group after another, and many of them get jobs of their own, whose beginning has a name: so a worker
computes it for all of them, and where there are several workers the broker gives each its own beginnings. Prompts are sorted as
texts: those that begin alike are neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from birdie_zmq.client.core import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, RollingWork

_LONG_PREFIX = 512
"""Characters, that is some hundred tokens: less is read again faster than it is looked for."""

_SMALL_GROUPS = 4
"""So many groups at most share a job."""


def loglikelihood_jobs(pairs: Sequence[tuple[str, str]], settings: ClientSettings) -> Iterator[Job]:
    """Jobs for ``(context, continuation)`` pairs."""
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), pairs[i][0], -len(pairs[i][1])))
    for prefix, group in _groups(order, lambda i: pairs[i][0], settings):
        for items, characters in _cut(group, lambda i: sum(map(len, pairs[i])), settings):
            yield Job(LogLikelihoodWork(pairs=[pairs[i] for i in items]), items, prefix, characters)


def rolling_jobs(texts: Sequence[str], settings: ClientSettings) -> Iterator[Job]:
    """Jobs for whole texts."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for items, characters in _cut(order, lambda i: len(texts[i]), settings):
        yield Job(RollingWork(texts=[texts[i] for i in items]), items, characters=characters)


@dataclass(frozen=True)
class Prompt:
    """What is to be continued, how, and by what random key where tokens are drawn."""

    text: str
    settings: GenerationParams
    key: int | None = None


def keyed(prompts: Sequence[tuple[str, GenerationParams]], seed: int) -> list[Prompt]:
    """Give each prompt that is sampled its key: of the seed, what it asks, and how often that was asked before.

    The same request then has the same answer wherever it stands in a run, and its repeats have others.
    """
    seen = Counter[tuple[str, GenerationParams]]()
    found = []
    for text, settings in prompts:
        key = None
        if settings.sampling is not None:
            content = [seed, text, msgspec.to_builtins(settings), seen[text, settings]]
            digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
            key = int.from_bytes(digest[:8], "big") >> 2
            seen[text, settings] += 1
        found.append(Prompt(text, settings, key))
    return found


def generate_jobs(prompts: Sequence[Prompt], settings: ClientSettings) -> Iterator[Job]:
    """Jobs for prompts, those with the same settings together, and in them those that begin alike."""
    by_settings: dict[GenerationParams, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_settings.setdefault(prompt.settings, []).append(i)
    for how, group in by_settings.items():
        order = sorted(group, key=lambda i: prompts[i].text)
        for prefix, alike in _groups(order, lambda i: prompts[i].text, settings):
            for items, characters in _cut(alike, lambda i: len(prompts[i].text), settings):
                keys = [key for i in items if (key := prompts[i].key) is not None]
                work = GenerateWork(prompts=[prompts[i].text for i in items], settings=how, keys=keys)
                yield Job(work, items, prefix, characters)


def _groups(
    order: Sequence[int], text: Callable[[int], str], settings: ClientSettings
) -> Iterator[tuple[str | None, list[int]]]:
    """Groups of texts with a long beginning in common, and its name; what is in no large group is in one without a name.

    A group stands where its first item stood in the order, and its items keep theirs.
    """
    alike: dict[str, list[int]] = {}
    for i in order:
        alike.setdefault(text(i)[:_LONG_PREFIX], []).append(i)
    few: list[int] = []
    for prefix, items in alike.items():
        if len(prefix) < _LONG_PREFIX or len(items) * _SMALL_GROUPS < settings.batch_items:
            few += items
            continue
        if few:
            yield None, few
            few = []
        yield hashlib.sha256(prefix.encode(errors="surrogatepass")).hexdigest(), items
    if few:
        yield None, few


def _cut(order: Sequence[int], size: Callable[[int], int], settings: ClientSettings) -> Iterator[tuple[list[int], int]]:
    """Cut numbers into runs that stay within a message's items and characters; one that is over by itself goes alone.

    Each run comes with its characters.
    """
    run: list[int] = []
    characters = 0
    for i in order:
        if run and (len(run) >= settings.batch_items or characters + size(i) > settings.batch_characters):
            yield run, characters
            run, characters = [], 0
        run.append(i)
        characters += size(i)
    if run:
        yield run, characters
