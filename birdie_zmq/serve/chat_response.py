"""The answer to ``POST /v1/chat/completions``, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from birdie_zmq.completions import Completion
from birdie_zmq.serve.completion_request import CompletionRequest
from birdie_zmq.serve.completion_response import Answer, positions, token_texts, usage


def chat_record(request: CompletionRequest, completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the JSON object that answers a request."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": chat_logprobs(request, completion, 0),
            "finish_reason": completion.finish_reason,
        }
        for index, completion in enumerate(completions)
    ]
    return Answer.new("chatcmpl", request.model).record("chat.completion", choices, usage(request, completions))


def chat_logprobs(request: CompletionRequest, completion: Completion, begin: int) -> dict[str, Any] | None:
    """Return the field ``logprobs`` of an answer, or of a part of it, from a token on; None if it is not wanted."""
    if request.logprobs is None:
        return None
    texts = token_texts(completion)
    shown = positions(completion.ids, completion.logprobs, request.logprobs)[begin:]
    return {
        "content": [
            _entry(position.id, position.logprob or 0.0, texts)
            | {"top_logprobs": [_entry(id, value, texts) for id, value in position.top[: request.logprobs]]}
            for position in shown
        ],
        "refusal": None,
    }


def _entry(id: int, logprob: float, texts: dict[int, str]) -> dict[str, Any]:
    return {"token": texts[id], "logprob": logprob, "bytes": list(texts[id].encode())}
