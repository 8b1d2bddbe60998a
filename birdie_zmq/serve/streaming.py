"""Answers in parts, as server-sent events: each has the text and the log-probabilities of the tokens since the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from birdie_zmq.completions import Completion
from birdie_zmq.errors import BirdieError
from birdie_zmq.serve.api_error import ApiError, as_api_error
from birdie_zmq.serve.chat_response import chat_logprobs
from birdie_zmq.serve.completion_request import CompletionRequest
from birdie_zmq.serve.completion_response import Answer, completion_logprobs, positions, token_texts, usage
from birdie_zmq.serve.dispatcher import Dispatcher

DONE = b"data: [DONE]\n\n"


class _Stream:
    """What of an answer has been sent: characters of its text, and tokens."""

    def __init__(self, request: CompletionRequest, index: int) -> None:
        self._request = request
        self._index = index
        self._text = ""
        self._tokens = 0
        self._offset = 0
        self._has_begun = False

    def choice(self, completion: Completion) -> dict[str, Any] | None:
        """Return what an answer, or a part of it, adds; None if that is nothing."""
        # A stop string may cut off text that was sent: special tokens in it have no text of their own.
        new = completion.text[len(self._text) :] if completion.text.startswith(self._text) else ""
        count = len(completion.ids) // 4
        if not new and completion.finish_reason is None and (self._request.logprobs is None or count == self._tokens):
            return None
        begin, self._text, self._tokens = self._tokens, self._text + new, count
        return self._chat(completion, new, begin) if self._request.chat else self._completion(completion, new, begin)

    def _completion(self, completion: Completion, new: str, begin: int) -> dict[str, Any]:
        logprobs = None
        if self._request.logprobs is not None:
            texts = token_texts(completion)
            shown = positions(completion.ids, completion.logprobs, self._request.logprobs)[begin:]
            as_ids = self._request.tokens_as_ids
            logprobs = completion_logprobs(shown, texts, as_ids=as_ids, offset=self._offset)
            self._offset += sum(len(texts[position.id]) for position in shown)
        return {"index": self._index, "text": new, "logprobs": logprobs, "finish_reason": completion.finish_reason}

    def _chat(self, completion: Completion, new: str, begin: int) -> dict[str, Any]:
        delta = {"content": new} if self._has_begun else {"role": "assistant", "content": new}
        self._has_begun = True
        logprobs = chat_logprobs(self._request, completion, begin)
        reason = completion.finish_reason
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


async def stream_events(request: CompletionRequest, dispatcher: Dispatcher) -> AsyncIterator[bytes]:
    """Yield the events that answer a request; if the caller stops, the work is cancelled.

    An error after the first event is an event too, since the status has been sent.
    """
    parts: asyncio.Queue[tuple[int, Completion] | None] = asyncio.Queue()
    head = Answer.new("chatcmpl" if request.chat else "cmpl", request.model)
    kind = "chat.completion.chunk" if request.chat else "text_completion"
    streams = [_Stream(request, index) for index in range(len(request.prompts))]
    work = asyncio.ensure_future(
        dispatcher.complete(
            request.prompts,
            request.params,
            lambda number, part: parts.put_nowait((number, part)),
        )
    )
    work.add_done_callback(lambda _: parts.put_nowait(None))
    try:
        while (each := await parts.get()) is not None:
            choice = streams[each[0]].choice(each[1])
            if choice is not None:
                yield _event(head.record(kind, [choice]))
        completions = await work
        for stream, completion in zip(streams, completions, strict=True):
            choice = stream.choice(completion)
            assert choice is not None
            yield _event(head.record(kind, [choice]))
        if request.stream_usage:
            yield _event(head.record(kind, [], usage(request, completions)))
    except ApiError as error:
        yield _event(error.content())
    except BirdieError as error:
        yield _event(as_api_error(error).content())
    finally:
        work.cancel()
    yield DONE


def _event(content: Any) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"
