"""The arguments of a model, parsed and validated once for everything in the model process that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from birdie_zmq.engine.mesh_shape import MeshShape, mesh_of_sizes, pop_mesh
from birdie_zmq.errors import UsageError
from birdie_zmq.types import ModelSpec


@dataclass(frozen=True)
class ModelArguments:
    """The model_args that reach a worker.

    Attributes:
        given: All of them, as they were given; the model's identity covers them.
        keywords: The keyword arguments of load_model and load_tokenizer: all but the mesh.
        mesh: The shape of the mesh of devices; None without a mesh.
        max_length: The maximum length of a row in tokens; None for that of the model.
        prefix_token_id: The token that precedes a text without context; None for that of the tokenizer.
        add_bos_token: Whether a text begins with BOS; None for the tokenizer's own rule.
    """

    given: Mapping[str, Any]
    keywords: Mapping[str, Any]
    mesh: MeshShape | None
    max_length: int | None
    prefix_token_id: int | None
    add_bos_token: bool | None


def parse_arguments(spec: ModelSpec, *, is_built_in: bool = False) -> ModelArguments:
    """Parse and validate the arguments of a model.

    Args:
        spec: The model.
        is_built_in: Whether the built-in models load it. They also understand the arguments of vLLM and SGLang for the sizes
            of a mesh, which mean to a user's file what it likes.

    Raises:
        UsageError: An argument that the engine reads has a wrong value.
    """
    given = spec.all_arguments()
    keywords = dict(given)
    mesh = pop_mesh(keywords)  # load_model gets the mesh itself, and a tokenizer needs no mesh.
    return ModelArguments(
        mesh=mesh or (mesh_of_sizes(keywords) if is_built_in else None),
        given=given,
        keywords=keywords,
        add_bos_token=_add_bos_token(given),
        prefix_token_id=_integer(given, "prefix_token_id", 0),
        max_length=_integer(given, "max_length", 1),
    )


def _integer(arguments: Mapping[str, Any], name: str, minimum: int) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UsageError(f"{name}={value!r} in model_args must be an integer of at least {minimum}")
    return value


def _add_bos_token(arguments: Mapping[str, Any]) -> bool | None:
    value = arguments.get("add_bos_token")
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"add_bos_token={value!r} in model_args must be True or False; leave it out for the default")
    return value
