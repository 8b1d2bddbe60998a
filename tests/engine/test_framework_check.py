"""A model of another framework than the engine's is rejected with advice."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.engine.framework_check import only_framework
from birdie_zmq.engine.jax.backend import make_backend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.errors import ModelCallError, ModelLoadError, ModelOutputError

TABLE = np.random.default_rng(0).normal(size=(11, 11)).astype(np.float32)


class Base:
    """A stand-in for torch.nn.Module, so that these tests run without torch."""

    __module__ = "torch.nn.modules.module"

    def __call__(self, *arguments: Any) -> Any:
        return self.forward(*arguments)

    def forward(self, *arguments: Any) -> Any:
        raise AssertionError("a module of another framework must not be called")


class Module(Base):
    """A user's own module."""


PYTORCH: dict[str, object] = {
    "a module": Module(),
    "its method": Module().forward,
    "a partial": functools.partial(Module(), 1),
    "params": (lambda params, tokens: params, {"layers": [Module()]}),
    "an applied module": (Module(), TABLE),
}
JAX: dict[str, object] = {
    "a jitted function": jax.jit(lambda tokens: jnp.asarray(TABLE)[tokens]),
    "params": (lambda params, tokens: params[0][tokens], [jnp.asarray(TABLE)]),
}


@pytest.mark.parametrize("form", PYTORCH)
def test_a_pytorch_model_is_rejected_by_the_engine_jax(form: str) -> None:
    with pytest.raises(ModelLoadError, match=r"a PyTorch model \(Module\), but the engine .* is jax; set engine=torch"):
        make_backend(resolve(PYTORCH[form]), 64)


@pytest.mark.parametrize("form", JAX)
def test_a_jax_model_is_rejected_by_the_engine_torch(form: str) -> None:
    with (
        pytest.raises(ModelLoadError, match=r"a JAX model .*the engine of this worker is torch; set engine=jax"),
        only_framework(resolve(JAX[form]), "torch"),
    ):
        pytest.fail("the backend must not be made")


def test_models_of_the_engines_own_framework_and_of_numpy_are_accepted() -> None:
    for returned in (*JAX.values(), (lambda params, tokens: params[tokens], TABLE)):
        assert make_backend(resolve(returned), 64).vocab_size == 11
    for returned in (*PYTORCH.values(), lambda tokens: tokens):
        with only_framework(resolve(returned), "torch"):
            pass


def test_a_failure_of_an_unrecognised_function_advises_the_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden_framework(tokens: Any) -> Any:
        raise TypeError("argument 'indices' must be Tensor")

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(ModelCallError, match=r"must be Tensor$"):
        make_backend(resolve(hidden_framework), 64)
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    with pytest.raises(
        ModelCallError, match=r"must be Tensor \(the engine is jax; if .* PyTorch model, set engine=torch"
    ) as error:
        make_backend(resolve(hidden_framework), 64)
    assert isinstance(error.value.__cause__, TypeError)
    with pytest.raises(ModelOutputError, match=r"a NoneType .the engine is jax"):
        make_backend(resolve(lambda tokens: None), 64)
