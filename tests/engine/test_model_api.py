"""The values that load_model may return, and those that are rejected."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from birdie_zmq import Model
from birdie_zmq.engine.model_api import LoadedModel, resolve
from birdie_zmq.errors import ModelLoadError

PARAMS = {"weight": 1.0}


def logits(*arguments: Any) -> Any:
    return arguments


def model_of(provided: set[str]) -> Model:
    """Return a model with these functions, and with params."""
    functions: dict[str, Any] = dict.fromkeys(provided, logits)
    return Model(params=PARAMS, **functions)


class Network:
    """A callable object, like the models of Equinox and Flax NNX."""

    def __call__(self, tokens: Any) -> Any:
        return tokens


class ApplyAndParams(NamedTuple):
    """A named pair."""

    apply: Any
    params: Any


def test_a_callable_has_no_params_and_is_not_traced() -> None:
    assert resolve(logits) == LoadedModel(Model(logits=logits), jit=False)


def test_a_callable_object_is_a_callable() -> None:
    network = Network()

    assert resolve(network) == LoadedModel(Model(logits=network), jit=False)


@pytest.mark.parametrize("pair", [(logits, PARAMS), ApplyAndParams(logits, PARAMS)])
def test_a_pair_is_a_function_and_its_params(pair: object) -> None:
    assert resolve(pair) == LoadedModel(Model(logits=logits, params=PARAMS), jit=True)


def test_a_model_keeps_its_fields() -> None:
    model = Model(logits=logits, params=PARAMS, max_length=64, vocab_size=100)

    assert resolve(model) == LoadedModel(model, jit=True)
    assert resolve(model).max_length == 64


@pytest.mark.parametrize(
    ("provided", "has_state"),
    [
        ({"logits"}, False),
        ({"hidden", "unembed"}, False),
        ({"init_state", "extend", "unembed"}, True),
        ({"logits", "init_state", "extend", "unembed", "branch"}, True),
    ],
)
def test_one_way_to_compute_is_enough(provided: set[str], has_state: bool) -> None:
    assert resolve(model_of(provided)).has_state == has_state


@pytest.mark.parametrize(
    ("provided", "message"),
    [
        ({"hidden"}, "has hidden, which needs unembed too"),
        ({"logits", "hidden"}, "has hidden, which needs unembed too"),
        ({"logits", "unembed_part"}, "has unembed_part, which needs unembed too"),
        ({"extend", "unembed"}, "has extend, which needs init_state too"),
        ({"logits", "extend"}, "has extend, which needs init_state and unembed too"),
        ({"logits", "init_state"}, "has init_state, which needs extend and unembed too"),
        ({"logits", "branch"}, "has branch, which needs extend and init_state and unembed too"),
        ({"hidden", "unembed", "branch"}, "has branch, which needs extend and init_state too"),
    ],
)
def test_a_function_without_those_that_it_needs_is_rejected_by_name(provided: set[str], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        resolve(model_of(provided))


@pytest.mark.parametrize("provided", [set(), {"unembed"}])
def test_a_model_that_cannot_compute_anything_is_rejected(provided: set[str]) -> None:
    with pytest.raises(ModelLoadError, match="cannot compute anything: provide logits; or hidden and unembed; or"):
        resolve(model_of(provided))


@pytest.mark.parametrize(
    ("returned", "described"),
    [
        (None, "returned None;"),
        ("gpt2", "returned a str;"),
        (PARAMS, "returned a dict;"),
        ((PARAMS, logits), r"returned a tuple of \(dict, function\);"),
        ((logits,), r"returned a tuple of \(function\);"),
        ((logits, PARAMS, 64), r"returned a tuple of \(function, dict, int\);"),
        ([logits, PARAMS], "returned a list;"),
    ],
)
def test_any_other_value_is_described_in_the_error(returned: object, described: str) -> None:
    with pytest.raises(ModelLoadError, match=described) as caught:
        resolve(returned)

    assert "must return a callable from tokens to logits, a pair (apply, params)" in caught.value.message
