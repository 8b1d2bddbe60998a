"""``mesh=``: every form in which lm_eval hands it on means the same, and what is none is refused with the way to say it."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.utils import simple_parse_args_string

from birdie_zmq.engine.mesh_shape import MeshShape, read_mesh
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.model_args import read_arguments

WANTED = MeshShape(data=2, model=4)


@pytest.mark.parametrize(
    "value",
    [
        "data:2/model:4",
        "data:2,model:4",
        "[data:2,model:4]",
        " model:4 / data:2 ",
        ["data:2", "model:4"],
        {"data": 2, "model": 4},
        {"model": 4, "data": 2},
    ],
)
def test_every_form_is_the_same_mesh_and_the_same_model(value: object) -> None:
    assert read_mesh(value) == WANTED
    arguments = read_arguments({"model_tag": "demo", "mesh": value})
    assert arguments.mesh == WANTED
    assert arguments.model.arguments == '{"mesh": {"data": 2, "model": 4}}'
    assert read_mesh(str(WANTED)) == read_mesh(WANTED.as_argument()) == WANTED


@pytest.mark.parametrize("text", ["mesh=data:2/model:4", "mesh=data:2,model:4"])
def test_what_lm_eval_cuts_at_a_comma_is_put_together(text: str) -> None:
    arguments = read_arguments(simple_parse_args_string(f"model_tag=demo,{text},size=small"))
    assert arguments.mesh == WANTED
    assert arguments.model.arguments == '{"mesh": {"data": 2, "model": 4}, "size": "small"}'


@pytest.mark.parametrize(("value", "shape"), [("data:8", (8, 1)), ("model:3", (1, 3)), ({"model": 2}, (1, 2))])
def test_an_axis_that_is_not_named_is_one(value: object, shape: tuple[int, int]) -> None:
    mesh = read_mesh(value)
    assert (mesh.data, mesh.model) == shape
    assert mesh.size == shape[0] * shape[1]


def test_without_the_word_nothing_is_said() -> None:
    arguments = read_arguments({"model_tag": "demo", "model:4": ""})
    assert arguments.mesh is None
    assert arguments.model.arguments == '{"model:4": ""}'


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "has no size"),
        ("8", "has no size"),
        (8, "of the type int"),
        (True, "of the type bool"),
        ("data:2;model:4", "the size of data is"),
        ("tensor:2", "axis 'tensor'"),
        ("data:2/data:4", "data twice"),
        ("data:0", "must be a whole number above 0"),
        ("data:-1", "must be a whole number above 0"),
        ("data:two", "must be a whole number above 0"),
        ({"data": 2.0}, "must be a whole number above 0"),
        ({"data": True}, "must be a whole number above 0"),
        ({}, "no axis"),
        ([], "no axis"),
    ],
)
def test_what_is_no_mesh_is_refused_with_the_way_to_say_it(value: Any, why: str) -> None:
    with pytest.raises(UsageError, match="mesh=data:2/model:4") as caught:
        read_arguments({"model_tag": "demo", "mesh": value})
    assert why in str(caught.value)
