"""A small Llama-like decoder, written as plain functions of (config, params, tokens).

The architecture is that of Llama (Touvron et al., 2023, arXiv:2302.13971): pre-normalisation with RMSNorm
(Zhang and Sennrich, 2019, arXiv:1910.07467), rotary position embedding (Su et al., 2021, arXiv:2104.09864),
grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245) and a SwiGLU feed-forward layer (Shazeer, 2020,
arXiv:2002.05202). It follows the conventions of Hugging Face's ``LlamaForCausalLM``, so that one set of parameters
means the same model in both; `birdie_zmq.models.checkpoint` reads and writes that form.

Shape letters used below: b batch, t position, d model width, f feed-forward width, n query heads, k key/value heads,
g query heads per key/value head (n = k * g), h width of a head, v vocabulary, l layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes that define a decoder. Hashable, so it can be a static argument of `jax.jit`.

    Raises:
        ValueError: on construction, if the sizes do not describe a decoder.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    max_length: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tied_head: bool = True

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"a head of {self.head_width} dimensions cannot be rotated in pairs (RoPE)")

    @property
    def head_width(self) -> int:
        """Dimensions of one attention head."""
        return self.d_model // self.n_heads

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> Self:
        """Read the keys of a Hugging Face Llama ``config.json``.

        Keys with a default in ``LlamaConfig`` may be missing or null; keys that change nothing here are ignored.

        Raises:
            ValueError: a size is missing or of the wrong type, or the file asks for a variant that this decoder
                does not compute (another activation, biases, scaled RoPE, a head width of its own).
        """
        given = {key: value for key, value in values.items() if value is not None}
        for key, expected in _FIXED_CHOICES.items():
            if given.get(key, expected) != expected:
                raise ValueError(f"{key}={given[key]!r} is not supported, only {expected!r}")
        given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
        config = cls(
            **{field: _integer(given, key) for field, key in _SIZES.items()},
            rope_theta=_plain_rope_theta(given),
            norm_epsilon=_number(given.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
            tied_head=bool(given.get("tie_word_embeddings", False)),
        )
        if given.get("head_dim", config.head_width) != config.head_width:
            raise ValueError(f"head_dim={given['head_dim']!r} is not hidden_size / num_attention_heads")
        return config

    def to_hugging_face(self) -> dict[str, Any]:
        """Return the keys of a Hugging Face Llama ``config.json``; `from_hugging_face` reads them back."""
        return {
            "architectures": ["LlamaForCausalLM"],
            **_FIXED_CHOICES,
            **{key: getattr(self, field) for field, key in _SIZES.items()},
            "head_dim": self.head_width,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": self.tied_head,
        }


_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "max_length": "max_position_embeddings",
}
_FIXED_CHOICES = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


class Layers(NamedTuple):
    """The weights of all layers, stacked on a leading axis l for `jax.lax.scan`.

    Matrices are [l, in, out] and applied as ``x @ w``: the transposes of PyTorch's ``Linear.weight``. Heads lie one
    after another along the out axis of `query`, `key` and `value`, and along the in axis of `output`.
    """

    attention_norm: jax.Array  # [l, d]
    query: jax.Array  # [l, d, n * h]
    key: jax.Array  # [l, d, k * h]
    value: jax.Array  # [l, d, k * h]
    output: jax.Array  # [l, n * h, d]
    feed_forward_norm: jax.Array  # [l, d]
    gate: jax.Array  # [l, d, f]
    up: jax.Array  # [l, d, f]
    down: jax.Array  # [l, f, d]


class Params(NamedTuple):
    """All weights of a decoder, a pytree; `head` is None where the embedding serves as the head (tied)."""

    embedding: jax.Array  # [v, d]
    layers: Layers
    final_norm: jax.Array  # [d]
    head: jax.Array | None  # [d, v]


def param_shapes(config: DecoderConfig) -> Params:
    """Return the pytree of params with a `jax.ShapeDtypeStruct` (float32) in place of every array."""
    shapes: Params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return shapes


def init_params(config: DecoderConfig, key: jax.Array, dtype: DTypeLike = "float32") -> Params:
    """Draw random weights.

    Matrices are normal with the standard deviation of a variance-preserving map, 1 / sqrt(in); those that write into
    the residual stream are smaller by 1 / sqrt(2 * layers), as in GPT-2 (Radford et al., 2019). Norms start at one.

    Args:
        config: the sizes of the weights.
        key: a JAX random key; the same key gives the same weights.
        dtype: floating dtype of every array.
    """
    layers, width = config.n_layers, config.d_model
    kv_width = config.n_kv_heads * config.head_width
    keys = iter(jax.random.split(key, 9))

    def normal(shape: tuple[int, ...], deviation: float) -> jax.Array:
        return (jax.random.normal(next(keys), shape) * deviation).astype(dtype)

    inward, residual = width**-0.5, (2 * layers) ** -0.5
    return Params(
        embedding=normal((config.vocab_size, width), inward),
        layers=Layers(
            attention_norm=jnp.ones((layers, width), dtype),
            query=normal((layers, width, width), inward),
            key=normal((layers, width, kv_width), inward),
            value=normal((layers, width, kv_width), inward),
            output=normal((layers, width, width), inward * residual),
            feed_forward_norm=jnp.ones((layers, width), dtype),
            gate=normal((layers, width, config.d_ff), inward),
            up=normal((layers, width, config.d_ff), inward),
            down=normal((layers, config.d_ff, width), config.d_ff**-0.5 * residual),
        ),
        final_norm=jnp.ones((width,), dtype),
        head=None if config.tied_head else normal((width, config.vocab_size), inward),
    )


def logits(config: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Return the logits of the next token at every position.

    Attention is causal, so what stands to the right of a row's end cannot reach the positions before it: padding there
    needs no mask, and any valid token id will do.

    Args:
        config: static under `jax.jit`.
        params: as `init_params` or `load_decoder` gives them, all of one dtype.
        tokens: integer [b, t], ids in [0, vocab_size); every row starts at position 0.

    Returns:
        float32 [b, t, v]; `[:, i]` scores the token at position i + 1.

    Raises:
        ValueError: `tokens` is not an integer array of rank 2. Lengths above `config.max_length` are computed all the
            same: the limit is what the model was trained for, and the caller's to keep.
    """
    return unembed(config, params, hidden(config, params, tokens))


def hidden(config: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Return the normalised final hidden states [b, t, d] of `tokens` [b, t], in the dtype of the params.

    Raises:
        ValueError: as `logits`.
    """
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have the shape [batch, length], not {list(tokens.shape)}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, not {tokens.dtype}")
    cos, sin = _rope_tables(config, tokens.shape[1])

    def layer(x: jax.Array, w: Layers) -> tuple[jax.Array, None]:
        x = x + _attention(config, w, _rms_norm(x, w.attention_norm, config.norm_epsilon), cos, sin)
        x = x + _feed_forward(w, _rms_norm(x, w.feed_forward_norm, config.norm_epsilon))
        return x, None

    x, _ = jax.lax.scan(layer, params.embedding[tokens], params.layers)
    return _rms_norm(x, params.final_norm, config.norm_epsilon)


def unembed(config: DecoderConfig, params: Params, hidden_states: jax.Array) -> jax.Array:
    """Return the float32 logits [..., v] of hidden states [..., d].

    Raises:
        ValueError: an untied config with tied params, or the reverse.
    """
    if (params.head is None) != config.tied_head:
        raise ValueError(f"tied_head={config.tied_head}, but params.head is {type(params.head).__name__}")
    head = params.embedding.T if params.head is None else params.head
    return jnp.matmul(hidden_states, head, preferred_element_type=jnp.float32)


def _attention(config: DecoderConfig, w: Layers, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Causal grouped-query attention, [b, t, d] -> [b, t, d]; scores and softmax in float32."""
    batch, length, _ = x.shape
    heads = (batch, length, config.n_kv_heads, -1, config.head_width)
    query = _rotate((x @ w.query).reshape(heads), cos, sin)  # [b, t, k, g, h]
    key = _rotate((x @ w.key).reshape(heads), cos, sin)[:, :, :, 0]  # [b, t, k, h]
    value = (x @ w.value).reshape(heads)[:, :, :, 0]  # [b, t, k, h]

    scores = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=jnp.float32)
    scores = scores * config.head_width**-0.5
    visible = jnp.tril(jnp.ones((length, length), bool))
    scores = jnp.where(visible[None, None, None], scores, -jnp.inf)  # the diagonal keeps every row finite
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value)
    return mixed.reshape(batch, length, config.n_heads * config.head_width) @ w.output


def _feed_forward(w: Layers, x: jax.Array) -> jax.Array:
    """SwiGLU, [b, t, d] -> [b, t, d]."""
    return (jax.nn.silu(x @ w.gate) * (x @ w.up)) @ w.down


def _rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """Scale [b, t, d] to unit root mean square, computed in float32, then by `weight` [d]."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return wide.astype(x.dtype) * weight[None, None]


def _rope_tables(config: DecoderConfig, length: int) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin of position * theta ** (-2i / h), each float32 [t, h / 2]."""
    exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
    positions = jnp.arange(length, dtype=jnp.float32)
    angles = positions[:, None] * (config.rope_theta**-exponents)[None]
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Apply RoPE to [b, t, k, g, h] with dimension i paired with i + h / 2.

    The paper pairs neighbours; this pairing of halves ("rotate_half") is Hugging Face's and needs its weights.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[None, :, None, None], sin[None, :, None, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _plain_rope_theta(values: Mapping[str, Any]) -> float:
    """Read RoPE's base from where old (rope_theta) and new (rope_parameters) versions of transformers write it."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"scaled RoPE is not supported: {rope!r}")
    return _number(rope.get("rope_theta", values.get("rope_theta", 10_000.0)), "rope_theta")


def _integer(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} must be an integer, not {value!r}")
    return value


def _number(value: Any, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key} must be a number, not {value!r}")
    return float(value)
