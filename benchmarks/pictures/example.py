"""The requests in the pictures: two questions of demo_choice with two answers each, encoded by the demo's tokenizer."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens
from birdie_zmq.engine.request_encoding import encode_pairs, encode_rolling
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_tokenizer
from birdie_zmq.types import StepLimits

_DATA = Path(__file__).resolve().parents[2] / "examples" / "tasks" / "data"
MAX_LENGTH = 512
_REQUESTS = ((0, (1, 0)), (1, (2, 3)))
"""Indices of documents, and of their answers."""


@functools.cache
def tokenizer() -> TokenizerAdapter:
    """Return the demo's tokenizer."""
    return TokenizerAdapter(load_tokenizer("demo"))


@functools.cache
def documents(name: str) -> list[dict[str, str]]:
    """Return the documents of a task."""
    return [json.loads(line) for line in (_DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@functools.cache
def pairs() -> list[tuple[str, str]]:
    """Return lm_eval's requests: contexts and continuations."""
    found = []
    for number, answers in _REQUESTS:
        document = documents("demo_choice")[number]
        context = f"Question: {document['question']}\nAnswer:"
        found += [(context, f" {document['choices'][answer]}") for answer in answers]
    return found


@functools.cache
def requests() -> list[ScoredSequence]:
    """Return the same requests as tokens."""
    return [item for item in encode_pairs(tokenizer(), pairs(), MAX_LENGTH) if item is not None]


def buckets() -> Buckets:
    """Return the step shapes on a CPU with at most four rows (``--batch_size 4``)."""
    return Buckets(MAX_LENGTH, 0, StepBudget(tokens=1024), StepLimits(max_rows=4))


def windows(count: int, max_length: int) -> tuple[list[str], list[ScoredSequence]]:
    """Return the first tokens of a story of demo_rolling, and its rolling windows for a model of `max_length`."""
    ids = tokenizer().encode([documents("demo_rolling")[0]["text"]])[0][:count]
    (found,) = encode_rolling(tokenizer(), [tokenizer().decode(ids)], max_length)
    return token_texts(ids), found


def token_texts(tokens: Tokens | list[int]) -> list[str]:
    """Return the text of each token."""
    return [tokenizer().decode([int(token)]) for token in tokens]
