"""``mesh=``: all forms that lm_eval passes on give the same mesh, and anything else is rejected with an example."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.utils import simple_parse_args_string

from birdie_zmq.engine.mesh_shape import MeshShape, mesh_of_sizes, parse_mesh
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.model_args import parse_model_args

EXPECTED = MeshShape(data=2, model=4)


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
def test_every_form_gives_the_same_mesh_and_the_same_model(value: object) -> None:
    assert parse_mesh(value) == EXPECTED
    arguments = parse_model_args({"model_tag": "demo", "mesh": value})
    assert arguments.mesh == EXPECTED
    assert arguments.model.arguments == '{"mesh": {"data": 2, "model": 4}}'
    assert parse_mesh(str(EXPECTED)) == parse_mesh(EXPECTED.as_argument()) == EXPECTED


@pytest.mark.parametrize("text", ["mesh=data:2/model:4", "mesh=data:2,model:4"])
def test_axes_that_lm_eval_splits_at_a_comma_are_joined(text: str) -> None:
    arguments = parse_model_args(simple_parse_args_string(f"model_tag=demo,{text},size=small"))
    assert arguments.mesh == EXPECTED
    assert arguments.model.arguments == '{"mesh": {"data": 2, "model": 4}, "size": "small"}'


@pytest.mark.parametrize(("value", "shape"), [("data:8", (8, 1)), ("model:3", (1, 3)), ({"model": 2}, (1, 2))])
def test_an_axis_that_is_not_given_has_size_one(value: object, shape: tuple[int, int]) -> None:
    mesh = parse_mesh(value)
    assert (mesh.data, mesh.model) == shape
    assert mesh.size == shape[0] * shape[1]


def test_without_the_argument_there_is_no_mesh() -> None:
    arguments = parse_model_args({"model_tag": "demo", "model:4": ""})
    assert arguments.mesh is None
    assert arguments.model.arguments == '{"model:4": ""}'


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "has no size"),
        ("8", "has no size"),
        (8, "its type is int"),
        (True, "its type is bool"),
        ("data:2;model:4", "the size of data is"),
        ("tensor:2", "axis 'tensor'"),
        ("data:2/data:4", "data is given twice"),
        ("data:0", "must be a whole number above 0"),
        ("data:-1", "must be a whole number above 0"),
        ("data:two", "must be a whole number above 0"),
        ({"data": 2.0}, "must be a whole number above 0"),
        ({"data": True}, "must be a whole number above 0"),
        ({}, "no axis"),
        ([], "no axis"),
    ],
)
def test_an_invalid_mesh_is_rejected_with_an_example(value: Any, reason: str) -> None:
    with pytest.raises(UsageError, match="mesh=data:2/model:4") as caught:
        parse_model_args({"model_tag": "demo", "mesh": value})
    assert reason in str(caught.value)


# --- Sizes as vLLM and SGLang name them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, None),
        ({"tensor_parallel_size": 1, "data_parallel_size": 1}, None),
        ({"tensor_parallel_size": 2}, MeshShape(model=2)),
        ({"data_parallel_size": 3}, MeshShape(data=3)),
        ({"tp_size": 2, "dp_size": 4}, MeshShape(data=4, model=2)),
        ({"tp_size": 2, "tensor_parallel_size": 2, "dp_size": None}, MeshShape(model=2)),
    ],
)
def test_sizes_of_other_backends(arguments: dict[str, object], expected: MeshShape | None) -> None:
    assert mesh_of_sizes(arguments) == expected


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "2"])
def test_invalid_sizes_of_other_backends_are_named(size: object) -> None:
    with pytest.raises(UsageError, match=rf"tp_size={size!r} in model_args must be a whole number above 0"):
        mesh_of_sizes({"tp_size": size})


def test_contradicting_sizes_of_other_backends_are_named() -> None:
    with pytest.raises(UsageError, match="tensor_parallel_size and tp_size in model_args contradict each other"):
        mesh_of_sizes({"tp_size": 2, "tensor_parallel_size": 4})
