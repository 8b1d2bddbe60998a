"""Reads a line of a samples file of lm_eval into the fields that a comparison needs.

lm_eval writes numbers and flags as text. A generated text may look like a number, so the type of a response follows from
its request: a request with generation kwargs has a text, one with a continuation a score and a flag, and one with a
single text a score.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from birdie_zmq.errors import UsageError

Kind = Literal["loglikelihood", "rolling", "generate"]


@dataclass(frozen=True)
class Sample:
    """The requests and responses of one document.

    Attributes:
        doc_id: Number of the document in its task.
        doc_hash: Hash of the document, empty if unknown.
        filter: The filter that the line belongs to; lm_eval writes one line per filter.
        request_hash: Hash of all arguments of its requests.
        kind: The type of its requests.
        loglikelihoods: Scores in nats, in the order of the requests, with all repeats of a request together; NaN for null.
        greedy: For each score, whether greedy decoding produces the continuation.
        texts: The generated texts, in the same order.
        choices: Indices of the scores that belong to answer choices.
        metrics: The numeric metrics of the document.
    """

    doc_id: str
    doc_hash: str
    filter: str
    request_hash: str
    kind: Kind
    loglikelihoods: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    texts: tuple[str, ...] = ()
    choices: tuple[int, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()

    @property
    def top_choice(self) -> int | None:
        """Index of the most likely answer choice, None without several choices."""
        if len(self.choices) < 2:
            return None
        scores = [self.loglikelihoods[i] for i in self.choices]
        best = max(scores, key=lambda score: -math.inf if math.isnan(score) else score)
        return next((i for i, score in enumerate(scores) if score == best), None)


def read_sample(line: str) -> Sample:
    """Read one line of a samples file.

    Raises:
        UsageError: The line is not a sample as lm_eval writes it.
    """
    try:
        found = json.loads(line)
        arguments = _arguments(found.get("arguments"))
        responses = [list(each) for each in found["resps"]]
        kind = _kind(arguments, responses)
        flat = [response for repeats in responses for response in repeats]
        numbers: tuple[float, ...] = ()
        greedy: tuple[bool, ...] = ()
        if kind == "loglikelihood":
            numbers = tuple(_number(response[0]) for response in flat)
            greedy = tuple(str(response[1]) == "True" for response in flat)
        elif kind == "rolling":
            numbers = tuple(_number(response) for response in flat)
        return Sample(
            doc_id=str(found["doc_id"]),
            doc_hash=str(found.get("doc_hash") or ""),
            filter=str(found.get("filter") or "none"),
            request_hash=_digest(arguments) if arguments else str(found.get("prompt_hash") or ""),
            kind=kind,
            loglikelihoods=numbers,
            greedy=greedy,
            texts=tuple(str(response) for response in flat) if kind == "generate" else (),
            choices=_choices(arguments, responses) if kind == "loglikelihood" else (),
            metrics=tuple(
                (str(name), float(found[name]))
                for name in found.get("metrics") or []
                if isinstance(found.get(name), int | float)
            ),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"this is not a line of an lm_eval samples file: {type(error).__name__}: {error}") from error


def _arguments(found: Any) -> list[list[Any]]:
    """Return the arguments of each request, in order; lm_eval writes objects with numbered keys."""
    if found is None:
        return []
    requests = list(found.values()) if isinstance(found, dict) else list(found)
    return [list(request.values()) if isinstance(request, dict) else list(request) for request in requests]


def _kind(arguments: list[list[Any]], responses: list[list[Any]]) -> Kind:
    if arguments:
        last = arguments[0][-1]
        if len(arguments[0]) == 1:
            return "rolling"
        return "generate" if isinstance(last, dict) else "loglikelihood"
    first = responses[0][0] if responses and responses[0] else ""
    if isinstance(first, list):
        return "loglikelihood"
    return "rolling" if isinstance(first, float) else "generate"


def _choices(arguments: list[list[Any]], responses: list[list[Any]]) -> tuple[int, ...]:
    """Return the index of the first score of each request that has a context.

    Requests without a context give the unconditional likelihood of an answer, so they are no choices.
    """
    with_context = [bool(request[0]) for request in arguments] or [True] * len(responses)
    if not any(with_context):
        with_context = [True] * len(responses)
    starts, at = [], 0
    for repeats, counts in zip(responses, with_context, strict=True):
        if counts and repeats:
            starts.append(at)
        at += len(repeats)
    return tuple(starts)


def _number(value: Any) -> float:
    return math.nan if value is None or value == "None" else float(value)


def _digest(arguments: list[list[Any]]) -> str:
    text = json.dumps(arguments, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
