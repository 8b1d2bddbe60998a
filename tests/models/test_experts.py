"""Layers of experts: padding reaches none, and the company of a request does not change it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models import decoder, grouped
from birdie_zmq.models.attention import AttentionMetadata
from birdie_zmq.models.decoder_layer import LayerStep
from birdie_zmq.models.experts import RoutedFeedForward
from tests.models.test_decoder import Tree, architecture, build_functions, jitted, random_params, to_arrays

REQUEST = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
CLOSE = 5e-6
"""Tolerance between executables that sum in different orders."""


def test_a_request_has_the_same_hidden_states_in_any_company() -> None:
    """Alone; beside other texts and padding, in a tree; and in the batch of a state whose other rows are longer or done."""
    model, hidden_fn, extend_fn, branch_fn = build_functions("mixtral")
    alone = np.asarray(hidden_fn(model.params, jnp.array([REQUEST + [0] * 14] * 6, jnp.int32)))[0, : len(REQUEST)]
    tree = Tree([REQUEST, [3, 1, 4, 8, 8, 8, 8], [7, 7, 7]])
    trees = to_arrays([tree, Tree([[2, 7, 1, 8]])], 24)
    in_tree = np.asarray(branch_fn(model.params, *trees, None))[0, np.array(tree.paths[0])]
    assert model.init_state is not None
    state = model.init_state(model.params, 3, 30)
    rows = np.array([REQUEST, [8] * 10, [9] * 10], np.int32)
    in_batch, _ = extend_fn(model.params, jnp.asarray(rows), jnp.array([10, 7, 0], jnp.int32), state)
    np.testing.assert_allclose(in_tree, alone, atol=CLOSE)
    np.testing.assert_allclose(np.asarray(in_batch)[0], alone, atol=CLOSE)
    assert np.abs(np.diff(alone, axis=0)).max() > 0.1


def one_layer(kind: str) -> tuple[RoutedFeedForward, dict[str, jax.Array]]:
    """Return a layer of experts of a small random model, and its weights."""
    chosen = architecture(kind)
    feed_forward, stack = chosen.layers[-1].feed_forward, random_params(chosen).layers[-1]
    assert isinstance(feed_forward, RoutedFeedForward)
    return feed_forward, {name: x if name in feed_forward.unsliced else x[0] for name, x in stack.items()}


def test_padding_reaches_no_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = grouped.group_by_expert

    def record(chosen: Any, count: int) -> Any:
        groups = original(chosen, count)
        jax.debug.callback(lambda counts: seen.append(counts.sum()), groups.counts)
        return groups

    monkeypatch.setattr(grouped, "group_by_expert", record)
    feed_forward, weights = one_layer("qwen2_moe")
    real = jnp.asarray(np.random.default_rng(3).random((3, 7)) < 0.4)
    metadata = AttentionMetadata(jnp.arange(7, dtype=jnp.int32)[None], real=real)
    step = LayerStep(metadata, {}, jnp.int32(0), jnp.int32(0))
    x = jnp.asarray(np.random.default_rng(2).standard_normal((3, 7, 16)), jnp.float32)
    jax.jit(lambda x: feed_forward(x, weights, step))(x).block_until_ready()
    jax.effects_barrier()  # type: ignore[no-untyped-call]
    assert seen == [2 * int(real.sum())]  # two experts for each token


def test_padding_of_trees_is_known_by_its_form() -> None:
    """All of it but the first such token of a row, since a row may end with a tree of one token 0."""
    texts = [[[0, 5, 0, 0], [0, 7], [9]], [[4, 4, 4]], [[3, 1], [0]]]
    tokens, depths, ends = to_arrays([Tree(row) for row in texts], 24)
    padding = np.asarray(decoder._tree_padding(tokens, depths, ends))
    for row, real in zip(padding, (6 + 1, 3 + 1, 3), strict=True):
        np.testing.assert_array_equal(row, np.arange(24) >= real)


def test_an_expert_that_every_token_uses_has_a_share_of_its_own() -> None:
    """Against the formula of Qwen 1.5's model card, computed token by token."""
    feed_forward, weights = one_layer("qwen2_moe")
    x = np.random.default_rng(2).standard_normal((1, 7, 16)).astype(np.float32)
    step = LayerStep(AttentionMetadata(jnp.arange(7, dtype=jnp.int32)[None]), {}, jnp.int32(0), jnp.int32(0))
    got = np.asarray(jitted(lambda x: feed_forward(x, weights, step))(jnp.asarray(x)))
    plain = {name: np.asarray(array, np.float64) for name, array in weights.items()}

    def silu(x: Any) -> Any:
        return x / (1 + np.exp(-x))

    for token, result in zip(x[0].astype(np.float64), got[0], strict=True):
        logits = token @ plain["router"]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        expected = silu(token @ plain["shared_gate"]) * (token @ plain["shared_up"]) @ plain["shared_down"]
        expected = expected / (1 + np.exp(-(token @ plain["shared_router"])))
        for number in np.argsort(-shares)[:2]:
            gate, up, down = (plain[f"experts_{name}"][0, number] for name in ("gate", "up", "down"))
            expected = expected + shares[number] * (silu(token @ gate) * (token @ up) @ down)
        np.testing.assert_allclose(result, expected, atol=1e-5)
