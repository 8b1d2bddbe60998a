"""The Llama family compared with an independent NumPy implementation, and the properties that scoring relies on."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.decoder import hidden, logits
from birdie_zmq.models.families.llama import llama, plain_llama
from birdie_zmq.models.weight_map import Params

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 48,
    "max_length": 64,
    "rope_theta": 500.0,
    "tied_head": False,
}
MODEL = plain_llama(**SIZES)
TOKENS = jnp.array([[3, 14, 15, 9, 2, 6, 5], [35, 8, 9, 7, 9, 32, 38]])
KEYS: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "rope_theta": 500.0,
}


def read(kind: str, **keys: Any) -> Architecture:
    """Read a configuration of a member of the family, completed by transformers."""
    return llama(complete_config({"model_type": kind, **KEYS, **keys}))


def with_windows(model: Architecture, *windows: int | None) -> Architecture:
    """Return a model with another attention window in each layer."""
    layers = zip(model.layers, windows, strict=True)
    return dataclasses.replace(
        model,
        layers=tuple(
            dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=window))
            for layer, window in layers
        ),
    )


VARIANTS: dict[str, Architecture] = {
    "plain": MODEL,
    "tied": plain_llama(**SIZES | {"tied_head": True}),
    "query, key and value biases": read("qwen2"),
    "all biases": read("llama", attention_bias=True, mlp_bias=True),
    "wide heads": read("llama", head_dim=16),
    "norms of queries and keys": read("qwen3"),
    "windows": with_windows(MODEL, 3, None, 1),
    "a window in all layers": read("mistral", sliding_window=2),
    "everything": with_windows(read("qwen3", attention_bias=True), None, 4, 2),
}


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Forbid implicit promotion of dtypes and ranks, which has hidden errors in model code before."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def random_params(model: Architecture, dtype: str = "float32") -> Params:
    """Return random weights; norms of one and biases of zero would hide that they are not applied."""
    params = model.init_params(jax.random.key(0))

    def changed(name: str, weight: jax.Array) -> jax.Array:
        draw = jax.random.normal(jax.random.key(len(name)), weight.shape)
        if name.endswith("_norm"):
            return 1.0 + 0.3 * draw
        return 0.3 * draw if name.endswith("_bias") else weight

    def change_all(part: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: changed(name, x).astype(dtype) for name, x in part.items()}

    return Params(change_all(params.outer), tuple(map(change_all, params.layers)))


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(MODEL)


def in_order(model: Architecture, params: Params) -> list[dict[str, NDArray[np.float64]]]:
    """Return the weights of each layer, in float64."""
    stacks = model.weight_map().stacks
    layers: list[dict[str, NDArray[np.float64]]] = [{} for _ in model.layers]
    for stack, weights in zip(stacks, params.layers, strict=True):
        for index, number in enumerate(stack.layers):
            layers[number] = {name: np.asarray(x[index], np.float64) for name, x in weights.items()}
    return layers


def reference_logits(model: Architecture, params: Params, row: NDArray[Any]) -> NDArray[np.float64]:
    """Compute one row in float64 with loops over layers, heads and positions, and RoPE as complex numbers."""
    outer = {name: np.asarray(x, np.float64) for name, x in params.outer.items()}
    width = model.layers[0].attention.head_width
    turns = np.arange(len(row))[:, None] * 500.0 ** (-2 * np.arange(width // 2) / width)

    def norm(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm.epsilon) * weight)

    def rotated(x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray((x[:, : width // 2] + 1j * x[:, width // 2 :]) * np.exp(1j * turns))

    x = outer["embedding"][row]
    for layer, w in zip(model.layers, in_order(model, params), strict=True):
        attention = layer.attention

        def linear(x: NDArray[Any], name: str, w: dict[str, NDArray[Any]] = w) -> NDArray[Any]:
            return np.asarray(x @ w[name] + w.get(f"{name}_bias", 0.0))

        normed, heads = norm(x, w["attention_norm"]), []
        queries, keys, values = (linear(normed, name) for name in ("query", "key", "value"))
        for head in range(attention.heads):
            columns = slice(head * width, (head + 1) * width)
            shared = head // (attention.heads // attention.kv_heads)
            kv_columns = slice(shared * width, (shared + 1) * width)
            query, key, value = queries[:, columns], keys[:, kv_columns], values[:, kv_columns]
            if "query_norm" in w:
                query, key = norm(query, w["query_norm"]), norm(key, w["key_norm"])
            query, key, mixed = rotated(query), rotated(key), []
            for t in range(len(row)):
                first = 0 if attention.window is None else max(0, t + 1 - attention.window)
                scores = np.exp((query[t] @ key[first : t + 1].conj().T).real / np.sqrt(width))
                mixed.append(scores / scores.sum() @ value[first : t + 1])
            heads.append(np.stack(mixed))
        x = x + linear(np.concatenate(heads, -1), "output")
        normed = norm(x, w["feed_forward_norm"])
        gate = linear(normed, "gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(normed, "up"), "down")
    head_matrix = outer["embedding"].T if model.tied_head else outer["head"]
    return np.asarray(norm(x, outer["final_norm"]) @ head_matrix)


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS)
def test_logits_match_numpy(model: Architecture) -> None:
    params = random_params(model)
    got = logits(model, params, TOKENS)
    assert got.shape == (2, 7, model.vocab_size)
    assert got.dtype == jnp.float32
    for row, tokens in zip(got, TOKENS, strict=True):
        np.testing.assert_allclose(row, reference_logits(model, params, np.asarray(tokens)), atol=2e-5)


def test_later_tokens_leave_earlier_logits_unchanged(params: Params) -> None:
    changed = TOKENS.at[:, 4].set(1)
    before, after = logits(MODEL, params, TOKENS), logits(MODEL, params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("padding", [0, 49])
def test_right_padding_does_not_change_logits(params: Params, padding: int) -> None:
    padded = jnp.pad(TOKENS, ((0, 0), (0, 9)), constant_values=padding)
    np.testing.assert_allclose(logits(MODEL, params, padded)[:, :7], logits(MODEL, params, TOKENS), atol=1e-5)


def test_rows_do_not_see_each_other(params: Params) -> None:
    both = logits(MODEL, params, TOKENS)
    for index in range(2):
        alone = logits(MODEL, params, TOKENS[index : index + 1])[0]
        np.testing.assert_allclose(both[index], alone, atol=1e-5)


def test_token_order_changes_the_logits(params: Params) -> None:
    """The last position attends to the same tokens in another order, which only RoPE distinguishes."""
    one_layer = dataclasses.replace(MODEL, layers=MODEL.layers[:1])
    first = params._replace(layers=({name: weights[:1] for name, weights in params.layers[0].items()},))
    reordered = TOKENS[:, jnp.array([1, 0, 2, 3, 4, 5, 6])]
    before, after = logits(one_layer, first, TOKENS)[:, -1], logits(one_layer, first, reordered)[:, -1]
    assert not np.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_logits_under_jit_in_bfloat16(name: str) -> None:
    model = VARIANTS[name]
    half = random_params(model, "bfloat16")
    got = jax.jit(logits, static_argnums=0)(model, half, TOKENS)
    assert hidden(model, half, TOKENS).dtype == jnp.bfloat16
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, logits(model, random_params(model), TOKENS), atol=0.2)


def test_unembed_of_selected_positions_matches_logits(params: Params) -> None:
    states = hidden(MODEL, params, TOKENS)[:, 2]
    np.testing.assert_allclose(MODEL.unembed(params, states), logits(MODEL, params, TOKENS)[:, 2], atol=1e-5)


@pytest.mark.parametrize("tokens", [jnp.zeros((4,), int), jnp.zeros((1, 2, 3), int), jnp.zeros((2, 3))])
def test_tokens_of_wrong_rank_or_dtype_are_refused(params: Params, tokens: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"tokens must (be|have)"):
        logits(MODEL, params, tokens)


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS)
def test_initial_weights_have_the_shapes_of_the_weight_map(model: Architecture) -> None:
    params, weight_map = model.init_params(jax.random.key(0), "bfloat16"), model.weight_map()
    assert {name: x.shape for name, x in params.outer.items()} == {
        name: spec.loaded_shape for name, spec in weight_map.outer.items()
    }
    for weights, stack in zip(params.layers, weight_map.stacks, strict=True):
        assert {name: x.shape for name, x in weights.items()} == {
            name: (len(stack.layers), *spec.loaded_shape) for name, spec in stack.specs.items()
        }
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_initial_weights_depend_on_the_key() -> None:
    first, again, other = (MODEL.init_params(jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(first.layers[0]["query"], other.layers[0]["query"])
    assert not np.allclose(first.layers[0]["key"], first.layers[0]["value"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "hidden_size 32 is not a multiple of num_attention_heads 3"),
        ({"n_kv_heads": 3}, "multiple of num_key_value_heads"),
        ({"n_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"n_heads": 32, "n_kv_heads": 32}, "rotated in pairs"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain_llama(**SIZES | change)


def test_every_matrix_product_has_full_float32_precision(params: Params) -> None:
    """GPUs and TPUs would otherwise round float32 inputs, and scores would differ from those on a CPU."""
    jaxpr = str(jax.make_jaxpr(lambda params, tokens: logits(MODEL, params, tokens))(params, TOKENS))
    products = jaxpr.count("dot_general[")
    assert products >= 9
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products
