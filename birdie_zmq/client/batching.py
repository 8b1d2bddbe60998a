"""Batching: turns the requests of one lm_eval call into jobs of bounded size, with related requests in the same job.

Texts to be scored are sorted by length, longest first, so that a text that is too long fails early. Equal contexts are
neighbours, so that the worker computes each of them once. Texts with a long common prefix, such as the few-shot examples of a task,
are grouped. A large group gets its own jobs, which name the prefix: a worker then computes the prefix once for all of them,
and with several workers the broker sends each prefix to the same worker. Prompts are sorted alphabetically, so that prompts
with a common prefix are neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from birdie_zmq.client.job import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, RollingWork

_LONG_PREFIX = 512
"""Characters, about a hundred tokens: a shorter prefix is cheaper to compute again than to look up."""

_MAX_GROUPS_PER_JOB = 4
"""A group smaller than ``batch_items`` divided by this number shares a job with other groups."""


def loglikelihood_jobs(pairs: Sequence[tuple[str, str]], settings: ClientSettings) -> Iterator[Job]:
    """Yield jobs for ``(context, continuation)`` pairs."""
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), pairs[i][0], -len(pairs[i][1])))
    for prefix, group in _groups(order, lambda i: pairs[i][0], settings):
        for items, characters in _split(group, lambda i: sum(map(len, pairs[i])), settings):
            yield Job(LogLikelihoodWork(pairs=[pairs[i] for i in items]), items, prefix, characters)


def rolling_jobs(texts: Sequence[str], settings: ClientSettings) -> Iterator[Job]:
    """Yield jobs for whole texts."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for items, characters in _split(order, lambda i: len(texts[i]), settings):
        yield Job(RollingWork(texts=[texts[i] for i in items]), items, characters=characters)


@dataclass(frozen=True)
class Prompt:
    """A prompt with its generation parameters, and its random key if tokens are sampled."""

    text: str
    settings: GenerationParams
    key: int | None = None


def assign_random_keys(prompts: Sequence[tuple[str, GenerationParams]], seed: int) -> list[Prompt]:
    """Return the prompts, each with its random key if it is sampled.

    The key depends on the seed, the request, and how often the same request occurred before. A request therefore has the
    same answer wherever it is in a run, and repeats of it have different answers.
    """
    seen = Counter[tuple[str, GenerationParams]]()
    keyed_prompts = []
    for text, settings in prompts:
        key = None
        if settings.sampling is not None:
            content = [seed, text, _key_content(settings), seen[text, settings]]
            digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
            key = int.from_bytes(digest[:8], "big") >> 2
            seen[text, settings] += 1
        keyed_prompts.append(Prompt(text, settings, key))
    return keyed_prompts


def _key_content(settings: GenerationParams) -> dict[str, Any]:
    """Return the generation parameters that a random key depends on: which of them the request names has no influence."""
    return {name: value for name, value in settings.key_content().items() if name != "given"}


def generate_jobs(prompts: Sequence[Prompt], settings: ClientSettings) -> Iterator[Job]:
    """Yield jobs for prompts, grouped by generation parameters and, among these, by common prefix."""
    by_settings: dict[GenerationParams, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_settings.setdefault(prompt.settings, []).append(i)
    for params, group in by_settings.items():
        order = sorted(group, key=lambda i: prompts[i].text)
        for prefix, same_prefix in _groups(order, lambda i: prompts[i].text, settings):
            for items, characters in _split(same_prefix, lambda i: len(prompts[i].text), settings):
                keys = [key for i in items if (key := prompts[i].key) is not None]
                work = GenerateWork(prompts=[prompts[i].text for i in items], settings=params, keys=keys)
                yield Job(work, items, prefix, characters)


def _groups(
    order: Sequence[int], text: Callable[[int], str], settings: ClientSettings
) -> Iterator[tuple[str | None, list[int]]]:
    """Yield groups of texts with a long common prefix, each with the prefix's name; small groups share one without a name.

    A group takes the place of its first item in the order, and its items keep their order.
    """
    by_prefix: dict[str, list[int]] = {}
    for i in order:
        by_prefix.setdefault(text(i)[:_LONG_PREFIX], []).append(i)
    ungrouped: list[int] = []
    for prefix, items in by_prefix.items():
        if len(prefix) < _LONG_PREFIX or len(items) * _MAX_GROUPS_PER_JOB < settings.batch_items:
            ungrouped += items
            continue
        if ungrouped:
            yield None, ungrouped
            ungrouped = []
        yield hashlib.sha256(prefix.encode(errors="surrogatepass")).hexdigest(), items
    if ungrouped:
        yield None, ungrouped


def _split(
    order: Sequence[int], size: Callable[[int], int], settings: ClientSettings
) -> Iterator[tuple[list[int], int]]:
    """Yield chunks of the items that stay within the limits of a message; an item above the limit is a chunk by itself.

    Each chunk comes with its characters.
    """
    chunk: list[int] = []
    characters = 0
    for i in order:
        if chunk and (len(chunk) >= settings.batch_items or characters + size(i) > settings.batch_characters):
            yield chunk, characters
            chunk, characters = [], 0
        chunk.append(i)
        characters += size(i)
    if chunk:
        yield chunk, characters
