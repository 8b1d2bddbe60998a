"""Typed access to a config: errors name a key that is missing or of the wrong type."""

from collections.abc import Callable
from typing import Any

import pytest

from birdie_zmq.models.config_fields import ConfigReader, require_positive

READERS: dict[str, Callable[[ConfigReader], object]] = {
    "integer": lambda fields: fields.integer("key"),
    "number": lambda fields: fields.number("key"),
    "optional_number": lambda fields: fields.optional_number("key"),
    "optional_integer": lambda fields: fields.optional_integer("key"),
    "flag": lambda fields: fields.flag("key", True),
    "text": lambda fields: fields.text("key"),
    "texts": lambda fields: fields.texts("key", 2),
    "numbers": lambda fields: fields.numbers("key", 2),
    "record": lambda fields: fields.record("key"),
}
WRONG: dict[str, list[Any]] = {
    "integer": [1.0, "1", True, [1]],
    "number": ["1.5", False, {}],
    "optional_number": ["1.5", True],
    "optional_integer": [1.5, "1", True],
    "flag": [1, 0, "true"],
    "text": [1, ["a"]],
    "texts": ["ab", ["a"], ["a", "b", "c"], ["a", 1]],
    "numbers": [1.0, [1.0], [1, 2, 3], [1.0, "2"], [1.0, None], [1.0, True]],
    "record": [[], "a", 1],
}


@pytest.mark.parametrize(("reader", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_value_of_the_wrong_type_is_refused_with_its_key(reader: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^key must be .*, not "):
        READERS[reader](ConfigReader({"key": value}))


@pytest.mark.parametrize(
    ("reader", "value", "expected"),
    [
        ("integer", 3, 3),
        ("number", 3, 3.0),
        ("number", 1.5, 1.5),
        ("optional_number", 2, 2.0),
        ("optional_integer", 2, 2),
        ("flag", False, False),
        ("text", "a", "a"),
        ("texts", ["a", "b"], ("a", "b")),
        ("numbers", [1, 2.5], (1.0, 2.5)),
    ],
)
def test_value_of_the_right_type_is_read(reader: str, value: object, expected: object) -> None:
    got = READERS[reader](ConfigReader({"key": value}))
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize("reader", ["integer", "number", "text", "texts", "numbers"])
@pytest.mark.parametrize("values", [{}, {"key": None}])
def test_missing_key_without_a_default_is_refused_with_its_name(reader: str, values: dict[str, None]) -> None:
    with pytest.raises(ValueError, match=r"^key must be"):
        READERS[reader](ConfigReader(values))


@pytest.mark.parametrize("values", [{}, {"key": None}])
def test_null_counts_as_missing(values: dict[str, None]) -> None:
    fields = ConfigReader(values)
    assert "key" not in fields
    assert fields.integer("key", 4) == 4
    assert fields.number("key", 0.5) == 0.5
    assert fields.flag("key", True) is True
    assert fields.text("key", "a") == "a"
    assert "x" not in fields.record("key")


def test_null_optional_value_overrides_the_default() -> None:
    fields = ConfigReader({"key": None})
    assert fields.optional_number("key", 1.5) is None
    assert fields.optional_integer("key", 2) is None


def test_missing_optional_value_is_the_default_or_none() -> None:
    fields = ConfigReader({})
    assert fields.optional_number("key", 1.5) == 1.5
    assert fields.optional_integer("key", 2) == 2
    assert fields.optional_number("key") is None
    assert fields.optional_integer("key") is None


def test_zero_and_false_are_values() -> None:
    fields = ConfigReader({"number": 0, "flag": False})
    assert "number" in fields
    assert fields.integer("number", 4) == 0
    assert fields.optional_integer("number", 4) == 0
    assert fields.flag("flag", True) is False


def test_nested_object_is_read_in_the_same_way() -> None:
    inner = ConfigReader({"outer": {"key": 3, "none": None}}).record("outer")
    assert inner.integer("key") == 3
    assert "none" not in inner


def test_require_accepts_supported_and_missing_values() -> None:
    for values in ({}, {"key": None}, {"key": "a"}, {"key": "b"}):
        ConfigReader(values).require("key", ("a", "b"))
    with pytest.raises(ValueError, match=r"^key='c' is not supported, only 'a' or 'b'$"):
        ConfigReader({"key": "c"}).require("key", ("a", "b"))


def test_size_below_one_is_refused_with_its_name() -> None:
    require_positive(width=1, depth=2)
    with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
        require_positive(width=1, depth=0)
