"""The answer to ``POST /v1/completions``, in OpenAI's form with vLLM's additions."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from birdie_zmq.completions import Completion, TokenLogprobs
from birdie_zmq.serve.completion_request import CompletionRequest

_MASKED = -9999.0
"""Stands for minus infinity, which JSON does not have; the same number as in vLLM."""


class _Position(NamedTuple):
    """A token with its log-probability, and the most likely tokens in its place; None where nothing predicts it."""

    id: int
    logprob: float | None
    top: list[tuple[int, float]]


class Answer(NamedTuple):
    """The head that all parts of an answer share: its id, the time, and the model's name."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, kind: str, model: str) -> Answer:
        """Return the head of a new answer."""
        return cls(f"{kind}-{uuid.uuid4().hex}", int(time.time()), model)

    def record(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """Return the JSON object of the whole answer, or of a part of it."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return head if usage is None else head | {"usage": usage}


def completion_record(request: CompletionRequest, completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the JSON object that answers a request."""
    head = Answer.new("cmpl", request.model)
    choices = [_choice(request, index, completion) for index, completion in enumerate(completions)]
    return head.record("text_completion", choices, usage(request, completions))


def usage(request: CompletionRequest, completions: Sequence[Completion]) -> dict[str, int]:
    """Return the numbers of tokens; a prompt with several answers counts once."""
    prompt = sum(len(completion.prompt_ids) // 4 for completion in completions[:: request.n])
    generated = sum(len(completion.ids) // 4 for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _choice(request: CompletionRequest, index: int, completion: Completion) -> dict[str, Any]:
    texts = token_texts(completion)
    echoed = ""
    if request.echo:
        text = request.prompts[index].text
        echoed = completion.prompt_text if text is None else text
    choice: dict[str, Any] = {
        "index": index,
        "text": echoed + completion.text,
        "logprobs": None,
        "finish_reason": completion.finish_reason,
        "stop_reason": None,
    }
    if request.logprobs is not None:
        shown = prompt_positions(completion, request.logprobs) if request.echo else []
        shown += positions(completion.ids, completion.logprobs, request.logprobs)
        choice["logprobs"] = completion_logprobs(shown, texts, as_ids=request.tokens_as_ids)
    if request.prompt_logprobs is not None:
        shown = prompt_positions(completion, request.prompt_logprobs)
        choice["prompt_logprobs"] = [_vllm_entry(each, texts, request.prompt_logprobs) for each in shown]
    return choice


def token_texts(completion: Completion) -> dict[int, str]:
    """Return the text of each token of an answer."""
    return dict(zip(_ids(completion.token_ids), completion.token_texts, strict=True))


def prompt_positions(completion: Completion, count: int) -> list[_Position]:
    """Return the tokens of a prompt, with at most `count` most likely ones; nothing predicts the first."""
    ids = completion.prompt_ids
    return [_Position(_ids(ids[:4])[0], None, []), *positions(ids[4:], completion.prompt_logprobs, count)]


def positions(ids: bytes, logprobs: TokenLogprobs | None, count: int) -> list[_Position]:
    """Return tokens with their log-probabilities, and with at most `count` most likely tokens."""
    if logprobs is None or not ids:
        return []
    own = _floats(logprobs.logprobs)
    shape = (len(own), logprobs.top)
    top_ids = np.frombuffer(logprobs.top_ids, "<i4").reshape(shape)[:, :count].tolist()
    top = np.frombuffer(logprobs.top_logprobs, "<f4").astype(np.float64).reshape(shape)[:, :count].tolist()
    found = []
    for id, logprob, likeliest, values in zip(_ids(ids), own, top_ids, top, strict=True):
        pairs = [(token, value) for token, value in zip(likeliest, values, strict=True) if math.isfinite(value)]
        if all(token != id for token, _ in pairs):
            pairs.append((id, logprob))  # as in OpenAI's API, the token itself is always among them
        found.append(_Position(id, _finite(logprob), [(token, _finite(value)) for token, value in pairs]))
    return found


def completion_logprobs(
    shown: Sequence[_Position], texts: dict[int, str], *, as_ids: bool, offset: int = 0
) -> dict[str, Any]:
    """Return the field ``logprobs`` of a completion.

    Args:
        shown: The tokens.
        texts: The text of each.
        as_ids: Whether tokens are named by their numbers, which are distinct; the texts of two tokens may be equal.
        offset: The characters before the first of them.
    """
    offsets, names, top = [], [], []
    for position in shown:
        name = _name(position.id, texts, as_ids=as_ids)
        offsets.append(offset)
        names.append(name)
        offset += len(texts[position.id])
        likeliest: dict[str, float] | None = None
        if position.logprob is not None:
            likeliest = {}
            for token, value in position.top:
                likeliest.setdefault(_name(token, texts, as_ids=as_ids), value)
        top.append(likeliest)
    return {
        "text_offset": offsets,
        "token_logprobs": [position.logprob for position in shown],
        "tokens": names,
        "top_logprobs": top,
    }


def _vllm_entry(position: _Position, texts: dict[int, str], count: int) -> dict[str, Any] | None:
    """Return an entry of vLLM's ``prompt_logprobs``; the rank of a token beyond the most likely ones is not computed."""
    if position.logprob is None:
        return None
    return {
        str(token): {"logprob": value, "rank": rank if rank <= count else None, "decoded_token": texts[token]}
        for rank, (token, value) in enumerate(position.top, 1)
    }


def _name(id: int, texts: dict[int, str], *, as_ids: bool) -> str:
    return f"token_id:{id}" if as_ids else texts[id]


def _ids(data: bytes) -> list[int]:
    ids: list[int] = np.frombuffer(data, "<i4").tolist()
    return ids


def _floats(data: bytes) -> list[float]:
    values: list[float] = np.frombuffer(data, "<f4").astype(np.float64).tolist()
    return values


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _MASKED
