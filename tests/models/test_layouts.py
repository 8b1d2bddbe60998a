"""Layouts are fixed where XLA for that platform would copy weights or states; `tox -e accelerators` shows that it does not."""

import functools

import jax
import jax.numpy as jnp
import pytest

from birdie_zmq.models import decoder
from birdie_zmq.models.attention import Target
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.layouts import state_in_order

LLAMA = plain_llama(vocab_size=32, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=16, max_length=64)


def lowered(target: Target) -> str:
    """Return the program of a decode step for a platform that this machine need not have."""
    extend = functools.partial(decoder.extend, LLAMA, target=target)
    params = LLAMA.init_params(jax.random.key(0), "bfloat16")
    state = decoder.init_state(LLAMA, params, 2, 64, target=target)
    traced = jax.jit(extend).trace(params, jnp.zeros((2, 1), jnp.int32), jnp.ones(2, jnp.int32), state)
    return str(traced.lower(lowering_platforms=({"gpu": "cuda"}.get(target.platform, target.platform),)).as_text())


@pytest.mark.parametrize("kernel", ["splash", "xla"])
def test_a_tpu_keeps_the_order_of_a_cache_and_computes_queries_apart(kernel: str) -> None:
    program = lowered(Target("tpu", kernel=kernel))  # type: ignore[arg-type]
    assert "LayoutConstraint" in program
    assert "optimization_barrier" in program


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_other_platforms_choose_their_own(platform: str) -> None:
    program = lowered(Target(platform))
    assert "LayoutConstraint" not in program
    assert "optimization_barrier" not in program


@pytest.mark.parametrize(("platform", "is_kept"), [("cpu", False), ("gpu", True), ("tpu", False)])
def test_a_gpu_keeps_the_order_of_the_states_of_recurrences(platform: str, is_kept: bool) -> None:
    jaxpr = jax.make_jaxpr(lambda x: state_in_order(x, platform))(jnp.zeros((2, 3)))
    assert ("layout_constraint" in str(jaxpr)) == is_kept
