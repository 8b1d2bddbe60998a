"""The routes of the server: each request is checked, read, answered, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from birdie_zmq.errors import BirdieError
from birdie_zmq.serve import tokenize
from birdie_zmq.serve.access import ApiKey, check_host, check_key
from birdie_zmq.serve.admission import Admission, Ticket
from birdie_zmq.serve.api_error import ApiError, as_api_error, json_response
from birdie_zmq.serve.bodies import read_json
from birdie_zmq.serve.chat_request import Conversation, parse_chat
from birdie_zmq.serve.chat_response import chat_record
from birdie_zmq.serve.completion_request import CompletionRequest, ModelLimits, parse_completion
from birdie_zmq.serve.completion_response import completion_record
from birdie_zmq.serve.conversation import render_conversation
from birdie_zmq.serve.dispatcher import Dispatcher
from birdie_zmq.serve.fault_log import log_fault
from birdie_zmq.serve.metrics import CONTENT_TYPE, ServeMetrics
from birdie_zmq.serve.model_connection import ModelConnection
from birdie_zmq.serve.settings import ServeSettings
from birdie_zmq.serve.streaming import stream_events
from birdie_zmq.types import ModelDescription

logger = logging.getLogger("birdie_zmq.serve")

Handler = Callable[[Request], Awaitable[Response]]


class ServeApp:
    """The routes, and what they share.

    Args:
        connection: The model.
        dispatcher: Answers prompts.
        settings: The limits.
        api_key: The key that requests must have; None for a server on loopback.
        names: The names that requests may call the model by.
    """

    def __init__(
        self,
        connection: ModelConnection,
        dispatcher: Dispatcher,
        settings: ServeSettings,
        api_key: ApiKey | None,
        names: tuple[str, ...],
    ) -> None:
        self._connection = connection
        self._dispatcher = dispatcher
        self._settings = settings
        self._api_key = api_key
        self._names = names
        self._created = int(time.time())
        self._admission = Admission(settings)
        self._metrics = ServeMetrics(self._admission, dispatcher, connection)

    def starlette(self) -> Starlette:
        """Return the ASGI application."""
        posts: dict[str, Handler] = {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }
        gets: dict[str, Handler] = {
            "/v1/models": self._models,
            "/tokenizer_info": self._tokenizer_info,
            "/metrics": self._show_metrics,
        }
        routes = [
            Route(path, self._guarded(path, self._admitted(handler)), methods=["POST"])
            for path, handler in posts.items()
        ]
        routes += [Route(path, self._guarded(path, handler), methods=["GET"]) for path, handler in gets.items()]
        routes += [Route("/health", self._guarded("/health", self._health, is_open=True), methods=["GET"])]
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_routed})

    # --- What surrounds each request ---------------------------------------------------------------------------------

    def _guarded(
        self, path: str, handler: Handler, *, is_open: bool = False
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that checks who asks, and turns errors into responses."""

        async def handle(request: Request) -> Response:
            began = time.monotonic()
            try:
                self._check_access(request, is_open=is_open)
                response = await handler(request)
            except ApiError as error:
                response = error.response()
            except BirdieError as error:
                response = as_api_error(error).response()
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody receives it
            except Exception as error:  # noqa: BLE001 - a fault of one request ends no other
                log_fault(logger, "a request failed", error)
                response = ApiError(500, "the server has a fault; its log says more", code="internal").response()
            self._metrics.responses[path, response.status_code] += 1
            level = logging.INFO if response.status_code >= 400 else logging.DEBUG
            logger.log(
                level, "%s %s %d %.0f ms", request.method, path, response.status_code, 1000 * (time.monotonic() - began)
            )
            return response

        return handle

    def _check_access(self, request: Request, *, is_open: bool) -> None:
        if self._api_key is None:
            check_host(request.headers.getlist("host"))
        elif not is_open:
            check_key(self._api_key, request.headers.getlist("authorization"))

    def _admitted(self, handler: Handler) -> Handler:
        """Return a handler that is called only while the server is not full, and ends when its client leaves."""

        async def handle(request: Request) -> Response:
            self._description()  # before the body is read
            ticket = self._admission.admit(request.headers.get("content-length"))
            response: Response | None = None
            try:
                response = await handler(request)
            finally:
                if isinstance(response, _EventStream):
                    response.ticket = ticket  # released at the end of the stream
                else:
                    ticket.release()
            return response

        return handle

    async def _answered(self, request: Request, work: Coroutine[Any, Any, Response]) -> Response:
        """Return the response of some work, which is cancelled if its client leaves, or waits too long.

        Raises:
            ApiError: It took too long.
            ClientDisconnect: The client has left.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, timeout=self._settings.request_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            if gone.done():
                raise ClientDisconnect
            raise ApiError(504, f"the answer took longer than {self._settings.request_s:g} s", code="timeout")
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    def _description(self) -> ModelDescription:
        """Return the model.

        Raises:
            ApiError: It is being loaded, or is not available.
        """
        if (error := self._connection.error) is not None:
            raise as_api_error(error) if as_api_error(error).status == 503 else _unavailable(error)
        if (description := self._connection.description) is None:
            raise ApiError(503, "the model is being loaded; try again later", code="loading")
        return description

    def _limits(self) -> ModelLimits:
        description = self._description()
        return ModelLimits(self._names, description.vocab_size or 0, description.max_length)

    # --- The routes --------------------------------------------------------------------------------------------------

    async def _completions(self, request: Request) -> Response:
        content = await read_json(request, self._settings)
        parsed = parse_completion(content, self._limits(), self._settings)
        return await self._complete(request, parsed)

    async def _chat(self, request: Request) -> Response:
        content = await read_json(request, self._settings)
        conversation, parsed = parse_chat(content, self._limits(), self._settings)
        text = await self._rendered(conversation)
        prompts = tuple(msgspec.structs.replace(prompt, text=text) for prompt in parsed.prompts)
        return await self._complete(request, dataclasses.replace(parsed, prompts=prompts))

    async def _complete(self, request: Request, parsed: CompletionRequest) -> Response:
        if parsed.stream:
            return _EventStream(stream_events(parsed, self._dispatcher), self._settings.request_s)

        async def whole() -> Response:
            completions = await self._dispatcher.complete(parsed.prompts, parsed.params)
            record = chat_record if parsed.chat else completion_record
            return json_response(record(parsed, completions))

        return await self._answered(request, whole())

    async def _rendered(self, conversation: Conversation) -> str:
        # A template may take long, and the event loop must not wait for it.
        return await asyncio.to_thread(render_conversation, conversation, self._description())

    async def _tokenize(self, request: Request) -> Response:
        content = await read_json(request, self._settings)
        limits = self._limits()
        source, special, wants_texts = tokenize.parse_tokenize(content, limits)
        text = source if isinstance(source, str) else await self._rendered(source)

        async def whole() -> Response:
            completion = await self._dispatcher.encode(text, add_special_tokens=special)
            return json_response(tokenize.tokenize_record(completion, limits, wants_texts=wants_texts))

        return await self._answered(request, whole())

    async def _detokenize(self, request: Request) -> Response:
        content = await read_json(request, self._settings)
        prompt = tokenize.parse_detokenize(content, self._limits())

        async def whole() -> Response:
            completion = await self._dispatcher.decode(prompt)
            return json_response({"prompt": completion.prompt_text})

        return await self._answered(request, whole())

    async def _models(self, request: Request) -> Response:
        del request
        length = self._description().max_length
        models = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "birdie-zmq", "max_model_len": length}
            for name in self._names
        ]
        return json_response({"object": "list", "data": models})

    async def _tokenizer_info(self, request: Request) -> Response:
        del request
        return json_response(tokenize.tokenizer_info(self._description()))

    async def _show_metrics(self, request: Request) -> Response:
        del request
        return Response(self._metrics.exposition(), media_type=CONTENT_TYPE)

    async def _health(self, request: Request) -> Response:
        del request
        self._description()
        return json_response({"status": "ok"})


class _EventStream(StreamingResponse):
    """A response of server-sent events, which releases the place of its request in any case.

    Args:
        events: The events.
        limit_s: How long it may take, in seconds.
    """

    ticket: Ticket | None = None

    def __init__(self, events: AsyncIterator[bytes], limit_s: float) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limit_s):
                    await super().__call__(scope, receive, send)
        finally:
            if self.ticket is not None:
                self.ticket.release()


def _unavailable(error: BirdieError) -> ApiError:
    return ApiError(503, f"the model is not available: {error.code}", code=error.code)


async def _disconnected(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _not_routed(request: Request, error: Exception) -> Response:
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {404: "there is no such route", 405: "this route has another method"}.get(status, "the request is not valid")
    return ApiError(status, text, code="route", closes=True).response()
