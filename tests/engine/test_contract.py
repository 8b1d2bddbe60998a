"""What load_model may return, and what it may not."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from birdie_zmq import Model
from birdie_zmq.engine.contract import LoadedModel, resolve
from birdie_zmq.errors import ModelLoadError

PARAMS = {"weight": 1.0}


def logits(*arguments: Any) -> Any:
    return arguments


class Network:
    """An object that is called, as models of Equinox and Flax NNX are."""

    def __call__(self, tokens: Any) -> Any:
        return tokens


class ApplyAndParams(NamedTuple):
    """A pair with names."""

    apply: Any
    params: Any


def test_a_callable_is_taken_without_params_and_left_untraced() -> None:
    assert resolve(logits) == LoadedModel(logits, params=None, jit=False)


def test_an_object_that_can_be_called_is_a_callable() -> None:
    network = Network()

    assert resolve(network) == LoadedModel(network, params=None, jit=False)


@pytest.mark.parametrize("pair", [(logits, PARAMS), ApplyAndParams(logits, PARAMS)])
def test_a_pair_is_a_function_and_its_params(pair: object) -> None:
    assert resolve(pair) == LoadedModel(logits, params=PARAMS, jit=True)


def test_a_model_keeps_what_it_names() -> None:
    model = Model(logits=logits, params=PARAMS, max_length=64, vocab_size=100)

    assert resolve(model) == LoadedModel(logits, params=PARAMS, jit=True, max_length=64, vocab_size=100)


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
