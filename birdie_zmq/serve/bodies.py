"""Reading the body of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request

from birdie_zmq.serve.api_error import ApiError
from birdie_zmq.serve.settings import ServeSettings


async def read_json(request: Request, settings: ServeSettings) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        ApiError: The content type is not JSON, the body is too large or too slow, or is not a JSON object.
        starlette.requests.ClientDisconnect: The client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the header Content-Type must be application/json", code="content_type", closes=True)
    body = await _read(request, settings)
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # The text of the error names a position, and nothing of the body.
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return content


async def _read(request: Request, settings: ServeSettings) -> bytes:
    limit = settings.max_body_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:  # a body in chunks has no length beforehand
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body did not arrive within {settings.body_s:g} s"
        raise ApiError(408, message, code="body_timeout", closes=True) from None
    return b"".join(chunks)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is over the limit of {limit:,} bytes; send fewer prompts at once",
        code="body_too_large",
        closes=True,
    )
