"""Typed reading of a ``config.json``: a value that is missing or of the wrong type is named, never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no JSON object; the message names it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what UTF-8 raises
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    return values


class Fields:
    """The keys of a Hugging Face ``config.json``; a null one counts as missing unless a method says otherwise.

    Every method raises ValueError, naming the key, for a value of the wrong type, or for a key that is missing where
    there is no default.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {key: value for key, value in values.items() if value is not None}
        self._null = {key for key, value in values.items() if value is None}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{key} must be an integer, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, whole or not."""
        value = self._values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{key} must be a number, not {value!r}")
        return float(value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A number; None where the key is null, or where it is missing and has no default."""
        return None if key in self._null or (key not in self and default is None) else self.number(key, default)

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        """A whole number; None where the key is null, or where it is missing and has no default."""
        return None if key in self._null or (key not in self and default is None) else self.integer(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """True or False."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{key} must be a string, not {value!r}")
        return value

    def texts(self, key: str, count: int) -> tuple[str, ...] | None:
        """A list of exactly `count` strings, or None where the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{key} must be a list of {count} strings, not {value!r}")
        return tuple(value)

    def record(self, key: str) -> Fields:
        """A JSON object; an empty one where the key is missing."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{key} must be an object, not {value!r}")
        return Fields(value)

    def require(self, key: str, supported: Sequence[object]) -> None:
        """Refuse any value but those supported; the first of them is what a missing key means.

        Raises:
            ValueError: The value is another, which would change what is computed.
        """
        value = self._values.get(key, supported[0])
        if value not in supported:
            known = " or ".join(repr(choice) for choice in supported)
            raise ValueError(f"{key}={value!r} is not supported, only {known}")


def positive(**sizes: int) -> None:
    """Raise ValueError, naming the size, unless each is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
