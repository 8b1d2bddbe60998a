"""Reading the fields of a request's JSON object: each is taken by name and type, and none may be left over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from birdie_zmq.serve.api_error import ApiError, invalid

T = TypeVar("T")


class Fields:
    """The fields of a JSON object; a value of null is as good as none.

    Args:
        content: The object.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = {name: value for name, value in content.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def take_optional(self, name: str, kind: Any) -> Any:
        """Remove a field, and return its value, which must be of a type; None if there is none.

        Raises:
            ApiError: The value has another type.
        """
        return self.take(name, kind, None)

    def take(self, name: str, kind: Any, default: T) -> T:
        """Remove a field, and return its value, which must be of a type; the default if there is none.

        Raises:
            ApiError: The value has another type.
        """
        if name not in self._content:
            return default
        value = self._content.pop(name)
        try:
            converted: T = msgspec.convert(value, kind)
        except (msgspec.ValidationError, RecursionError, OverflowError) as error:
            raise invalid(f"{name} is invalid: {describe(error)}", name) from None
        return converted

    def take_raw(self, name: str) -> Any:
        """Remove a field, and return its value; None if there is none."""
        return self._content.pop(name, None)

    def names(self) -> Collection[str]:
        """Return the names of the fields that are left."""
        return tuple(self._content)

    def allow(self, neutral: Mapping[str, Collection[Any]]) -> None:
        """Remove fields whose values change nothing.

        Args:
            neutral: The values of each field that change nothing; an empty collection allows every value.

        Raises:
            ApiError: A field has another value.
        """
        for name, values in neutral.items():
            if name in self._content:
                value = self._content.pop(name)
                if values and not any(type(value) is type(each) and value == each for each in values):
                    raise ApiError(400, f"{name} is not supported; leave it out", param=name, code="unsupported")

    def finish(self) -> None:
        """Check that no field is left.

        Raises:
            ApiError: One is; it would be ignored, and might change the answer.
        """
        if self._content:
            name = next(iter(self._content))
            shown = name[:64].encode("unicode_escape").decode()
            raise ApiError(
                400, f"the field {shown!r} is unknown or not supported; leave it out", param=shown, code="unsupported"
            )


def describe(error: Exception) -> str:
    """Return the text of an error of msgspec, without the value that it may quote."""
    text = str(error)
    return "the value is not one of those allowed" if text.startswith("Invalid enum value") else text
