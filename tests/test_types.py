"""The specification of a model: its arguments, and what a loaded model has in common with others."""

from __future__ import annotations

import json

import pytest

from birdie_zmq.types import REQUEST_ARGUMENTS, ModelSpec

SPEC = ModelSpec(tag="m", arguments='{"dtype": "float32"}', request_arguments=(("prefix_token_id", "7"), ("seed", "1")))


def test_all_arguments_are_those_of_both_kinds() -> None:
    assert SPEC.all_arguments() == {"dtype": "float32", "prefix_token_id": 7, "seed": 1}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ModelSpec(tag="m"), "m"),
        (ModelSpec(tag="m", arguments='{"a": 1}'), 'm {"a": 1}'),
        (ModelSpec(tag="m", request_arguments=(("seed", "1"),)), 'm {"seed": 1}'),
        (SPEC, 'm {"dtype": "float32", "prefix_token_id": 7, "seed": 1}'),
    ],
)
def test_the_text_of_a_specification_has_all_arguments_as_one_object(spec: ModelSpec, text: str) -> None:
    assert str(spec) == text
    assert json.loads(spec.arguments_text) == spec.all_arguments()


def test_specifications_without_ignored_arguments_are_equal_if_nothing_else_differs() -> None:
    other = ModelSpec(tag="m", arguments=SPEC.arguments, request_arguments=(("seed", "2"),))
    assert other.without({"seed"}) != SPEC.without({"seed"})
    assert other.without(REQUEST_ARGUMENTS) == SPEC.without(REQUEST_ARGUMENTS)
    assert SPEC.without({"dtype"}) is SPEC
    assert SPEC.without(()) is SPEC
