"""One line of a file of samples, as lm_eval writes them, read into what a comparison needs.

lm_eval writes numbers and flags as texts. A generated text may look like one of them, so what a response is follows
from the request: one with settings asks for a text, one with a continuation for a score and a flag, else for a score.
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
    """What was asked of one document, and what came back.

    Attributes:
        doc_id: The document's number in its task.
        doc_hash: The hash of the document, empty where it is not known.
        filter: The name of the filter that this line is for; lm_eval writes a line a filter.
        asked: A hash of all arguments of its requests.
        kind: What its responses are.
        loglikelihoods: In nats, those of all repeats of the first request, then of the next; NaN for null.
        greedy: Whether each is what greedy decoding gives.
        texts: The generated texts, in the same order.
        choices: Which of the log-likelihoods are those of the answers to choose from.
        metrics: The metrics of this document that are numbers.
    """

    doc_id: str
    doc_hash: str
    filter: str
    asked: str
    kind: Kind
    loglikelihoods: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    texts: tuple[str, ...] = ()
    choices: tuple[int, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()

    @property
    def chosen(self) -> int | None:
        """The likeliest of several answers, None where there is no choice."""
        if len(self.choices) < 2:
            return None
        scores = [self.loglikelihoods[i] for i in self.choices]
        best = max(scores, key=lambda score: -math.inf if math.isnan(score) else score)
        return next((i for i, score in enumerate(scores) if score == best), None)


def read_sample(line: str) -> Sample:
    """Read one line of a file of samples.

    Raises:
        UsageError: It is not what lm_eval writes.
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
            asked=_digest(arguments) if arguments else str(found.get("prompt_hash") or ""),
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
        raise UsageError(f"this is no line of lm_eval's samples: {type(error).__name__}: {error}") from error


def _arguments(found: Any) -> list[list[Any]]:
    """The arguments of each request in their order: lm_eval writes objects, whose names end in numbers."""
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
    """The first repeat of each request that has a context: those without one only say how likely an answer is anyway."""
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
