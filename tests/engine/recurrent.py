"""A small recurrent model with plain functions; unlike a KV cache, its state has no axis of tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq import Model

VOCABULARY = 40
WIDTH = 24


def init_params(seed: int = 0) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "embedding": jax.random.normal(keys[0], (VOCABULARY, WIDTH)),
        "gate": jax.random.normal(keys[1], (WIDTH, WIDTH)) / WIDTH**0.5,
        "value": jax.random.normal(keys[2], (WIDTH, WIDTH)) / WIDTH**0.5,
        "head": jax.random.normal(keys[3], (WIDTH, VOCABULARY)) / WIDTH**0.25,
    }


def init_state(params: Any, batch: int, capacity: int) -> jax.Array:
    return jnp.zeros((batch, WIDTH))


def extend(params: Any, tokens: jax.Array, lengths: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute a gated linear recurrence: the gate is the share of each channel that is kept. Padding keeps all of it."""
    embedded = params["embedding"][tokens]
    is_real = (jnp.arange(tokens.shape[1])[None] < lengths[:, None])[..., None]
    gates = jnp.where(is_real, jax.nn.sigmoid(embedded @ params["gate"] + 2.0), 1.0)
    values = jnp.where(is_real, embedded @ params["value"], 0.0)

    def step(state: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        gate, value = at
        state = gate * state + (1 - gate) * value
        return state, state

    state, hidden = jax.lax.scan(step, state, (gates.swapaxes(0, 1), values.swapaxes(0, 1)))
    return hidden.swapaxes(0, 1), state


def unembed(params: Any, hidden: jax.Array) -> jax.Array:
    return jnp.asarray(hidden @ params["head"] * 4.0)


def logits(params: Any, tokens: jax.Array) -> jax.Array:
    """Return the logits of whole rows."""
    batch, length = tokens.shape
    hidden, _ = extend(params, tokens, jnp.full(batch, length), init_state(params, batch, length))
    return unembed(params, hidden)


def recurrent() -> Model:
    """Return the model with its state as the only way to compute."""
    return Model(params=init_params(), init_state=init_state, extend=extend, unembed=unembed)
