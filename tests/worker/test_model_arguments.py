"""The arguments of a model, and the values that are refused."""

from __future__ import annotations

import pytest

from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.errors import UsageError
from birdie_zmq.types import ModelSpec
from birdie_zmq.worker.model_arguments import ModelArguments, parse_arguments


def parse(arguments: str) -> ModelArguments:
    return parse_arguments(ModelSpec(tag="m", arguments=arguments))


def test_keywords_are_all_arguments_but_the_mesh() -> None:
    arguments = parse(
        '{"add_bos_token": false, "max_length": 8, "mesh": {"data": 2, "model": 1}, "prefix_token_id": 0}'
    )
    keywords = {"add_bos_token": False, "max_length": 8, "prefix_token_id": 0}
    assert arguments == ModelArguments(
        given={**keywords, "mesh": {"data": 2, "model": 1}},
        keywords=keywords,
        mesh=MeshShape(data=2),
        max_length=8,
        prefix_token_id=0,
        add_bos_token=False,
    )


def test_arguments_that_are_not_given_are_none() -> None:
    assert parse('{"max_length": null}') == ModelArguments(
        given={"max_length": None},
        keywords={"max_length": None},
        mesh=None,
        max_length=None,
        prefix_token_id=None,
        add_bos_token=None,
    )


def test_request_arguments_are_arguments_too() -> None:
    spec = ModelSpec(tag="m", arguments='{"size": 1}', request_arguments=(("prefix_token_id", "5"), ("seed", "2")))
    arguments = parse_arguments(spec)
    assert arguments.given == arguments.keywords == {"size": 1, "prefix_token_id": 5, "seed": 2}
    assert arguments.prefix_token_id == 5
    with pytest.raises(UsageError, match="prefix_token_id=-2"):
        parse_arguments(ModelSpec(tag="m", request_arguments=(("prefix_token_id", "-2"),)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"mesh": "data:0"}', "mesh='data:0' in model_args: the size of data is 0"),
        ('{"max_length": 0}', "max_length=0 in model_args must be an integer of at least 1"),
        ('{"prefix_token_id": -1}', "prefix_token_id=-1 in model_args must be an integer of at least 0"),
        ('{"prefix_token_id": true}', "prefix_token_id=True in model_args must be an integer"),
        ('{"max_length": "8"}', "max_length='8' in model_args must be an integer"),
        ('{"add_bos_token": 1}', "add_bos_token=1 in model_args must be True or False"),
    ],
)
def test_wrong_values_are_refused(arguments: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(arguments)


def test_sizes_of_other_backends_are_a_mesh_for_the_built_in_models_only() -> None:
    spec = ModelSpec(tag="m", arguments='{"dp_size": 2, "tensor_parallel_size": 4}')

    assert parse_arguments(spec, is_built_in=True).mesh == MeshShape(data=2, model=4)
    assert parse_arguments(spec, is_built_in=True).keywords == {"dp_size": 2, "tensor_parallel_size": 4}
    assert parse_arguments(spec).mesh is None


def test_a_mesh_is_preferred_to_the_sizes_of_other_backends() -> None:
    spec = ModelSpec(tag="m", arguments='{"mesh": {"data": 1, "model": 2}, "tp_size": 2}')

    assert parse_arguments(spec, is_built_in=True).mesh == MeshShape(model=2)
