"""Typed access to a model's configuration: a missing value or one of the wrong type is an error that names the key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file does not hold a JSON object; the message names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one as well
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return values


class UnsupportedValueError(ValueError):
    """A value of a configuration that is valid, and that changes the model in a way that is not supported."""


class ConfigReader:
    """The keys of a Hugging Face ``config.json``; a null value counts as missing unless a method says otherwise.

    Every method raises ValueError, naming the key, if the value has the wrong type, or if the key is missing and has no
    default.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {key: value for key, value in values.items() if value is not None}
        self._null = {key for key, value in values.items() if value is None}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{key} must be an integer, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number, as a float."""
        value = self._values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{key} must be a number, not {value!r}")
        return float(value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """Return a number; None if the key is null, or if it is missing and has no default."""
        return None if key in self._null or (key not in self and default is None) else self.number(key, default)

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        """Return an integer; None if the key is null, or if it is missing and has no default."""
        return None if key in self._null or (key not in self and default is None) else self.integer(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{key} must be a string, not {value!r}")
        return value

    def texts(self, key: str, count: int) -> tuple[str, ...]:
        """Return a list of exactly `count` strings."""
        value = self._values.get(key)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{key} must be a list of {count} strings, not {value!r}")
        return tuple(value)

    def all_texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; an empty one if the key is missing."""
        value = self._values.get(key, [])
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{key} must be a list of strings, not {value!r}")
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of integers; an empty one if the key is missing."""
        value = self._values.get(key, [])
        if not isinstance(value, list):
            raise ValueError(f"{key} must be a list of integers, not {value!r}")
        return tuple(ConfigReader({key: number}).integer(key) for number in value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """Return a list of exactly `count` numbers, as floats."""
        value = self._values.get(key)
        if not isinstance(value, list | tuple) or len(value) != count:
            raise ValueError(f"{key} must be a list of {count} numbers, not {value!r}")
        return tuple(ConfigReader({key: number}).number(key) for number in value)

    def record(self, key: str) -> ConfigReader:
        """Return a JSON object; an empty one if the key is missing."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{key} must be an object, not {value!r}")
        return ConfigReader(value)

    def require(self, key: str, supported: Sequence[object]) -> None:
        """Check that a value is supported; the first supported value is the default of a missing key.

        Raises:
            UnsupportedValueError: The value is not supported, and would change what is computed.
        """
        value = self._values.get(key, supported[0])
        if value not in supported:
            choices = " or ".join(repr(choice) for choice in supported)
            raise UnsupportedValueError(f"{key}={value!r} is not supported, only {choices}")


def require_positive(**sizes: int) -> None:
    """Raise ValueError, naming the size, if one of them is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
