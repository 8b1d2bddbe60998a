"""The decoder against an independent NumPy computation, and the properties that scoring relies on."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.models.decoder import DecoderConfig, Params, hidden, init_params, logits, param_shapes, unembed

CONFIG = DecoderConfig(
    vocab_size=50,
    d_model=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_ff=48,
    max_length=64,
    rope_theta=500.0,
    tied_head=False,
)
TOKENS = jnp.array([[3, 14, 15, 9, 2, 6, 5], [35, 8, 9, 7, 9, 32, 38]])


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """No silent promotion of dtypes or ranks: both have hidden errors in model code before."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def params() -> Params:
    drawn = init_params(CONFIG, jax.random.key(0))
    # Norm weights of one would hide a norm that is not applied.
    norm = jnp.linspace(0.5, 1.5, CONFIG.d_model)
    layers = drawn.layers._replace(
        attention_norm=drawn.layers.attention_norm * norm[None],
        feed_forward_norm=drawn.layers.feed_forward_norm * norm[None, ::-1],
    )
    return drawn._replace(layers=layers, final_norm=norm)


def reference_logits(config: DecoderConfig, params: Params, row: NDArray[Any]) -> NDArray[np.float64]:
    """Compute one row in float64 with loops over layers, heads and positions, and RoPE as complex numbers."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    width = config.head_width
    turns = np.arange(len(row))[:, None] * config.rope_theta ** (-2 * np.arange(width // 2) / width)

    def norm(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * weight)

    def rotated(x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray((x[:, : width // 2] + 1j * x[:, width // 2 :]) * np.exp(1j * turns))

    x = w.embedding[row]
    for i in range(config.n_layers):
        layer = jax.tree.map(lambda weights, i=i: weights[i], w.layers)
        normed, heads = norm(x, layer.attention_norm), []
        for head in range(config.n_heads):
            columns = slice(head * width, (head + 1) * width)
            shared = head // (config.n_heads // config.n_kv_heads)
            kv_columns = slice(shared * width, (shared + 1) * width)
            query = rotated(normed @ layer.query[:, columns])
            key = rotated(normed @ layer.key[:, kv_columns])
            value = normed @ layer.value[:, kv_columns]
            mixed = []
            for t in range(len(row)):
                scores = np.exp((query[t] @ key[: t + 1].conj().T).real / np.sqrt(width))
                mixed.append(scores / scores.sum() @ value[: t + 1])
            heads.append(np.stack(mixed))
        x = x + np.concatenate(heads, -1) @ layer.output
        normed = norm(x, layer.feed_forward_norm)
        gate = normed @ layer.gate
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ layer.up)) @ layer.down
    head = w.embedding.T if w.head is None else w.head
    return np.asarray(norm(x, w.final_norm) @ head)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_match_numpy(params: Params, tied: bool) -> None:
    config = dataclasses.replace(CONFIG, tied_head=tied)
    if tied:
        params = params._replace(head=None)
    got = logits(config, params, TOKENS)
    assert got.shape == (2, 7, CONFIG.vocab_size)
    assert got.dtype == jnp.float32
    for row, expected in zip(got, TOKENS, strict=True):
        np.testing.assert_allclose(row, reference_logits(config, params, np.asarray(expected)), atol=2e-5)


def test_later_tokens_leave_earlier_logits_unchanged(params: Params) -> None:
    changed = TOKENS.at[:, 4].set(1)
    before, after = logits(CONFIG, params, TOKENS), logits(CONFIG, params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("padding", [0, 49])
def test_right_padding_does_not_change_logits(params: Params, padding: int) -> None:
    padded = jnp.pad(TOKENS, ((0, 0), (0, 9)), constant_values=padding)
    np.testing.assert_allclose(logits(CONFIG, params, padded)[:, :7], logits(CONFIG, params, TOKENS), atol=1e-5)


def test_rows_do_not_see_each_other(params: Params) -> None:
    both = logits(CONFIG, params, TOKENS)
    for index in range(2):
        alone = logits(CONFIG, params, TOKENS[index : index + 1])[0]
        np.testing.assert_allclose(both[index], alone, atol=1e-5)


def test_positions_are_seen(params: Params) -> None:
    """The last position attends to the same tokens in another order, which only RoPE can tell apart."""
    one_layer = dataclasses.replace(CONFIG, n_layers=1)
    first = params._replace(layers=jax.tree.map(lambda weights: weights[:1], params.layers))
    reordered = TOKENS[:, jnp.array([1, 0, 2, 3, 4, 5, 6])]
    before, after = logits(one_layer, first, TOKENS)[:, -1], logits(one_layer, first, reordered)[:, -1]
    assert not np.allclose(before, after, atol=1e-4)


def test_logits_under_jit_in_bfloat16(params: Params) -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = jax.jit(logits, static_argnums=0)(CONFIG, half, TOKENS)
    assert hidden(CONFIG, half, TOKENS).dtype == jnp.bfloat16
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, logits(CONFIG, params, TOKENS), atol=0.2)


def test_unembed_takes_chosen_positions(params: Params) -> None:
    states = hidden(CONFIG, params, TOKENS)[:, 2]
    np.testing.assert_allclose(unembed(CONFIG, params, states), logits(CONFIG, params, TOKENS)[:, 2], atol=1e-5)


@pytest.mark.parametrize("tokens", [jnp.zeros((4,), int), jnp.zeros((1, 2, 3), int), jnp.zeros((2, 3))])
def test_tokens_of_wrong_rank_or_dtype_are_refused(params: Params, tokens: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"tokens must (be|have)"):
        logits(CONFIG, params, tokens)


def test_missing_head_is_refused(params: Params) -> None:
    with pytest.raises(ValueError, match="tied_head=False"):
        logits(CONFIG, params._replace(head=None), TOKENS)


def test_param_shapes_are_those_of_init(params: Params) -> None:
    assert jax.tree.map(lambda s: s.shape, param_shapes(CONFIG)) == jax.tree.map(lambda p: p.shape, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "multiple of n_heads"),
        ({"n_kv_heads": 3}, "multiple of n_kv_heads"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
        ({"n_heads": 32, "n_kv_heads": 32}, "rotated in pairs"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]


def test_hugging_face_keys_round_trip() -> None:
    values = CONFIG.to_hugging_face()
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert DecoderConfig.from_hugging_face(values) == CONFIG


def test_hugging_face_defaults_and_newer_rope_key() -> None:
    values = CONFIG.to_hugging_face()
    del values["num_key_value_heads"], values["head_dim"], values["rope_theta"]
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    assert DecoderConfig.from_hugging_face(values) == dataclasses.replace(CONFIG, n_kv_heads=4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mamba"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("head_dim", 16),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("hidden_size", "32"),
        ("vocab_size", None),
        ("rms_norm_eps", "small"),
    ],
)
def test_hugging_face_variants_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match="RoPE" if key == "rope_scaling" else key):
        DecoderConfig.from_hugging_face(CONFIG.to_hugging_face() | {key: value})
