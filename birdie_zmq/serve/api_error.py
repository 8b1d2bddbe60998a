"""Errors in the form of OpenAI's API: a status, and a JSON object with message, type, param and code."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from birdie_zmq.errors import (
    BirdieError,
    MalformedMessage,
    MessageTooLarge,
    RequestError,
    UnavailableError,
    UsageError,
)

RETRY_AFTER_S = 5


class ApiError(Exception):
    """An error that is answered with an HTTP status.

    Args:
        status: The status.
        message: What failed and what to do.
        param: The field of the request at fault, if it is one.
        code: A stable name.
        closes: Whether the connection is closed, because the rest of the request is not read.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, closes: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.closes = closes

    def content(self) -> dict[str, Any]:
        """Return the JSON content of the response."""
        return {
            "error": {"message": self.message, "type": _TYPES.get(self.status, "server_error"), "param": self.param}
            | {"code": self.code}
        }

    def response(self) -> Response:
        """Return the response."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.closes:
            headers["Connection"] = "close"
        return json_response(self.content(), self.status, headers)


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with JSON content."""
    body = msgspec.json.encode(content)
    fixed = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(body, status, {**fixed, **(headers or {})}, media_type="application/json")


def invalid(message: str, param: str | None = None) -> ApiError:
    """Return the error for a request with an invalid field."""
    return ApiError(400, message, param=param, code="invalid_value")


def as_api_error(error: BirdieError) -> ApiError:
    """Return the HTTP form of an error of this package.

    The message of an error in a model may quote a text of other requests, so only its code is shown.
    """
    match error:
        case RequestError() | UsageError() | MalformedMessage():
            return ApiError(400, error.message, code=error.code)
        case MessageTooLarge():
            return ApiError(413, error.message, code=error.code)
        case UnavailableError():
            return ApiError(503, f"no model is available: {error.message}", code=error.code)
    return ApiError(
        500,
        f"the model failed with the error {error.code}; the log of the server and its worker says more",
        code=error.code,
    )
