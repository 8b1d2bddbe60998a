"""RecurrentGemma: a scan equals its definition, and unknown variants are refused by name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.linear_scan import linear_scan
from tests.models.test_decoder import architecture


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("recurrent_gemma", {"block_types": ["recurrent", "local"]}, "block_types must be a list of recurrent and"),
        ("recurrent_gemma", {"lru_width": 18}, "lru_width 18 is not a multiple of num_attention_heads 4"),
        ("recurrent_gemma", {"embeddings_scale_by_sqrt_dim": False}, "embeddings_scale_by_sqrt_dim=False is not"),
    ],
)
def test_an_unknown_variant_is_refused_by_name(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture(kind, **change)


@pytest.mark.parametrize("length", [1, 9])
def test_a_scan_equals_one_token_after_another(length: int) -> None:
    random = np.random.default_rng(1)
    factors, inputs = random.uniform(0, 1, (2, 2, length, 3))
    factors[1, length // 2 :], inputs[1, length // 2 :] = 1, 0  # padding
    state = before = random.standard_normal((2, 3))
    expected = []
    for t in range(length):
        state = factors[:, t] * state + inputs[:, t]
        expected.append(state)
    got = jax.jit(linear_scan)(*(jnp.asarray(x, jnp.float32) for x in (factors, inputs, before)))
    np.testing.assert_allclose(got, np.stack(expected, axis=1), atol=1e-6)
    if length == 1:
        np.testing.assert_array_equal(got[1, 0], before[1].astype(np.float32))
