"""Decoding by the kernels for a CPU, against decoding by XLA alone."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models import cpu_kernels
from birdie_zmq.models.attention import Target, selection
from birdie_zmq.models.decoder import build_model
from tests.models.test_decoder import CLOSE, CONFIGS, EVERY_FAMILY, architecture, random_params, tokens_of

LARGER = {"head_dim": 8, "intermediate_size": 32, "ffn_dim": 32, "partial_rotary_factor": 0.5}
"""Sizes that the kernels support."""

UNSUPPORTED_ATTENTION = {"gemma2", "bloom", "falcon", "deepseek_v3", "mamba", "mamba2", "gpt2", "gpt_neox", "lfm2"}
"""Families with a softcap, ALiBi, narrower heads or no attention, in these configurations."""


@EVERY_FAMILY
def test_kernels_compute_what_xla_computes(kind: str) -> None:
    chosen = architecture(kind, **{key: value for key, value in LARGER.items() if key in CONFIGS[kind]})
    params = random_params(chosen)
    found = []
    for kernel in ("xla", "numba"):
        model = build_model(chosen, params, Target(kernel=kernel))
        assert model.init_state is not None
        state = model.init_state(params, 3, 64)
        assert model.extend is not None
        extend = jax.jit(model.extend)
        given = tokens_of(3, 9), jnp.array([9, 2, 6], jnp.int32)
        _, state = extend(params, *given, state)
        for number in range(3):  # the second row is not active in the second step
            active = jnp.array([1, number != 1, 1], jnp.int32)
            hidden, state = extend(params, tokens_of(3, 1, seed=number + 1), active, state)
            found.append((kernel, np.asarray(hidden)[np.asarray(active) == 1]))
        traced = extend.lower(params, tokens_of(3, 1), active, state).as_text()
        assert ("birdie_zmq.multiply_by_layer" in traced) == (kernel == "numba")
        assert ("birdie_zmq.attend_to_cache" in traced) == (kernel == "numba" and kind not in UNSUPPORTED_ATTENTION)

    for (_, by_xla), (_, by_kernel) in zip(found[:3], found[3:], strict=True):
        np.testing.assert_allclose(by_kernel, by_xla, rtol=0, atol=CLOSE)


def test_text_of_several_tokens_is_left_to_xla() -> None:
    chosen = architecture("llama", **{key: LARGER[key] for key in ("head_dim", "intermediate_size")})
    params = random_params(chosen)
    model = build_model(chosen, params, Target(kernel="numba"))
    assert model.init_state is not None

    assert model.extend is not None
    state = model.init_state(params, 1, 64)
    traced = jax.jit(model.extend).lower(params, tokens_of(1, 2), jnp.array([2], jnp.int32), state).as_text()

    assert "birdie_zmq." not in traced


def test_large_models_on_one_cpu_use_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIRDIE_ZMQ_ATTENTION", raising=False)
    large = cpu_kernels.MIN_BYTES
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))

    assert selection.default_target(float32_bytes=large).kernel == "numba"
    assert selection.default_target(float32_bytes=large - 1).kernel == "xla"
    assert selection.default_target(mesh, float32_bytes=large).kernel == "xla"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert selection.default_target(float32_bytes=large).kernel == "xla"
    monkeypatch.undo()
    monkeypatch.setenv("BIRDIE_ZMQ_ATTENTION", "xla")
    assert selection.default_target(float32_bytes=large).kernel == "xla"


class _Changed:
    """The kernels, with the products or the attention multiplied by a factor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, factor: float) -> None:
        found = cpu_kernels.load()
        assert found is not None
        self._factor = factor
        self._kernel: Any = getattr(found, name)
        module = "product" if name == "multiply_by_layer" else "cached_attention"
        monkeypatch.setattr(f"birdie_zmq.models.cpu_kernels.{module}.{name}", self)

    def __call__(self, *arguments: Any) -> Any:
        results = self._kernel(*arguments)
        return results * self._factor if isinstance(results, jax.Array) else (results[0] * self._factor, *results[1:])


@pytest.mark.parametrize("factor", [1.001, float("nan")])
@pytest.mark.parametrize("name", ["multiply_by_layer", "attend_to_cache"])
def test_kernel_that_differs_from_numpy_is_not_used(
    name: str, factor: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _Changed(monkeypatch, name, factor)

    with caplog.at_level(logging.WARNING):
        assert cpu_kernels.load.__wrapped__() is None

    assert "the kernels for decoding on a CPU are off, since they differ from NumPy by " in caplog.text


def test_kernel_that_cannot_be_compiled_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no target machine")

    cpu_kernels.load()
    monkeypatch.setattr("birdie_zmq.models.cpu_kernels.product.multiply_by_layer", fail)

    with caplog.at_level(logging.WARNING):
        assert cpu_kernels.load.__wrapped__() is None

    assert "the kernels for decoding on a CPU are off, so decoding takes longer: no target machine" in caplog.text
