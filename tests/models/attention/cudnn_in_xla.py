"""The functions of JAX's cuDNN module that `cudnn` calls, computed by XLA: arguments, shapes and dtypes are the same."""

import enum
from typing import Any

import jax
import jax.numpy as jnp


class MaskType(enum.Enum):
    NO_MASK = 0
    PADDING = 1
    CAUSAL = 2


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    q_seqlen: jax.Array | None = None,
    kv_seqlen: jax.Array | None = None,
    *,
    scale: float,
    mask_type: MaskType,
    sliding_window_length: int | None = None,
    return_residual: bool,
) -> tuple[jax.Array, jax.Array]:
    assert query.dtype == jnp.bfloat16
    assert return_residual
    assert (mask_type is MaskType.PADDING) == (q_seqlen is not None) == (kv_seqlen is not None)
    assert mask_type is MaskType.CAUSAL or sliding_window_length is None
    output, log_sum = jax.nn.dot_product_attention(
        query.astype(jnp.float32),
        key.astype(jnp.float32),
        value.astype(jnp.float32),
        mask=mask,
        query_seq_lengths=q_seqlen,
        key_value_seq_lengths=kv_seqlen,
        scale=scale,
        is_causal=mask_type is MaskType.CAUSAL,
        local_window_size=None if sliding_window_length is None else (sliding_window_length - 1, 0),
        return_residual=True,
        implementation="xla",
    )
    return output.astype(query.dtype), log_sum.transpose(0, 2, 1)  # as cuDNN: float32 [b, n, t]


def paged_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    q_seqlen: jax.Array,
    kv_seqlen: jax.Array,
    page_table_k: jax.Array,
    page_table_v: jax.Array,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    pages = []
    for container, table in ((key, page_table_k), (value, page_table_v)):
        assert table.shape == (len(query), 1, len(container) // len(query), 1)
        pages.append(container[table[:, 0, :, 0]].reshape(len(query), -1, *container.shape[2:]))
    keys, values = pages
    return dot_product_attention(query, keys, values, q_seqlen=q_seqlen, kv_seqlen=kv_seqlen, **options)
