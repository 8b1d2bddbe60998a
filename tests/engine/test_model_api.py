"""What load_model may return, and what it may not."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from birdie_zmq import Model
from birdie_zmq.engine.model_api import LoadedModel, resolve
from birdie_zmq.errors import ModelLoadError

PARAMS = {"weight": 1.0}


def logits(*arguments: Any) -> Any:
    return arguments


def model_of(given: set[str]) -> Model:
    """A model that has these functions, and params."""
    functions: dict[str, Any] = dict.fromkeys(given, logits)
    return Model(params=PARAMS, **functions)


class Network:
    """An object that is called, as models of Equinox and Flax NNX are."""

    def __call__(self, tokens: Any) -> Any:
        return tokens


class ApplyAndParams(NamedTuple):
    """A pair with names."""

    apply: Any
    params: Any


def test_a_callable_is_taken_without_params_and_left_untraced() -> None:
    assert resolve(logits) == LoadedModel(Model(logits=logits), jit=False)


def test_an_object_that_can_be_called_is_a_callable() -> None:
    network = Network()

    assert resolve(network) == LoadedModel(Model(logits=network), jit=False)


@pytest.mark.parametrize("pair", [(logits, PARAMS), ApplyAndParams(logits, PARAMS)])
def test_a_pair_is_a_function_and_its_params(pair: object) -> None:
    assert resolve(pair) == LoadedModel(Model(logits=logits, params=PARAMS), jit=True)


def test_a_model_keeps_what_it_names() -> None:
    model = Model(logits=logits, params=PARAMS, max_length=64, vocab_size=100)

    assert resolve(model) == LoadedModel(model, jit=True)
    assert resolve(model).max_length == 64


@pytest.mark.parametrize(
    ("given", "has_state"),
    [
        ({"logits"}, False),
        ({"hidden", "unembed"}, False),
        ({"init_state", "extend", "unembed"}, True),
        ({"logits", "init_state", "extend", "unembed", "branch"}, True),
    ],
)
def test_one_way_to_compute_is_enough(given: set[str], has_state: bool) -> None:
    assert resolve(model_of(given)).has_state == has_state


@pytest.mark.parametrize(
    ("given", "said"),
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
def test_a_part_without_those_that_it_needs_is_refused_by_name(given: set[str], said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        resolve(model_of(given))


@pytest.mark.parametrize("given", [set(), {"unembed"}])
def test_a_model_that_computes_nothing_is_refused(given: set[str]) -> None:
    with pytest.raises(ModelLoadError, match="cannot compute anything: give it logits; or hidden and unembed; or"):
        resolve(model_of(given))


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
def test_anything_else_is_described_in_the_error(returned: object, described: str) -> None:
    with pytest.raises(ModelLoadError, match=described) as caught:
        resolve(returned)

    assert "must return a callable from tokens to logits, a pair (apply, params)" in caught.value.message
