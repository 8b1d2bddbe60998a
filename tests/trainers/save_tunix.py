"""Saves models with Tunix's own code, in an environment of Tunix: ``python -m trainers.save_tunix FOLDER``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from tunix.models.gemma import model as gemma
from tunix.models.gemma3 import model as gemma3
from tunix.models.llama3 import model as llama3
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen3 import model as qwen3
from tunix.sft.checkpoint_manager import CheckpointManager

from .saving import GEMMA, GEMMA2, GEMMA3, SIZES, TOKENS, VOCABULARY, randomised, run_all, write

_COMMON = {"embed_dim": 32, "hidden_dim": 64, "num_heads": 4, "head_dim": 8, "num_kv_heads": 2}
_THETA = 1_000_000
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": float(_THETA)}, "hidden_act": "silu"}
_LOCAL, _GLOBAL = gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL


def save(make: Callable[[], Any], hf: Mapping[str, Any], folder: Path) -> None:
    """Save the step 2 with Tunix's checkpoint manager, and write the logits."""
    model = make()
    state = jax.tree.map(lambda x: jnp.asarray(randomised(x, is_norm=x.ndim == 1)), nnx.state(model, nnx.Param))
    nnx.update(model, state)
    rows, length = TOKENS.shape
    positions = jnp.broadcast_to(jnp.arange(length), TOKENS.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
    with jax.default_matmul_precision("highest"):
        logits, _ = model(jnp.asarray(TOKENS), positions, None, mask)
    write(folder, logits, hf)
    manager = CheckpointManager(str(folder / "checkpoints"))
    manager.save(2, model, force=True)
    manager.close()


def _llama() -> Any:
    sizes = llama3.ModelConfig(num_layers=3, vocab_size=VOCABULARY, rope_theta=_THETA, norm_eps=1e-6, **_COMMON)
    return llama3.Llama3(sizes, rngs=nnx.Rngs(0))


def _qwen2() -> Any:
    tied = {"use_tied_embedding": True, "param_dtype": jnp.float32}
    sizes = qwen2.ModelConfig(num_layers=3, vocab_size=VOCABULARY, rope_theta=_THETA, norm_eps=1e-6, **tied, **_COMMON)
    return qwen2.Qwen2(sizes, rngs=nnx.Rngs(0))


def _qwen3() -> Any:
    sizes = qwen3.ModelConfig(num_layers=3, vocab_size=VOCABULARY, rope_theta=_THETA, norm_eps=1e-6, **_COMMON)
    return qwen3.Qwen3(sizes, rngs=nnx.Rngs(0))


def _gemma2() -> Any:
    sizes = gemma.ModelConfig(
        num_layers=2,
        num_embed=VOCABULARY,
        final_logit_softcap=30.0,
        attn_logits_soft_cap=50.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=(_LOCAL, _GLOBAL),
        sliding_window_size=8,
        **_COMMON,
    )
    return gemma.Gemma(sizes, rngs=nnx.Rngs(0))


def _gemma1() -> Any:
    sizes = gemma.ModelConfig(
        num_layers=3,
        num_embed=VOCABULARY,
        final_logit_softcap=None,
        use_post_attn_norm=False,
        use_post_ffw_norm=False,
        attention_types=(_GLOBAL,) * 3,
        **{**_COMMON, "num_kv_heads": 4},
    )
    return gemma.Gemma(sizes, rngs=nnx.Rngs(0))


def _gemma3() -> Any:
    sizes = gemma3.ModelConfig(
        num_layers=7,
        num_embed=VOCABULARY,
        sliding_window_size=8,
        local_base_frequency=10_000,
        global_base_frequency=1_000_000,
        global_scale_factor=8.0,
        param_dtype=jnp.float32,
        **_COMMON,
    )
    return gemma3.Gemma3(sizes, rngs=nnx.Rngs(0))


_TYPES = {"layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]}
_THREE = {"num_hidden_layers": 3}

MODELS = {
    "llama 3": functools.partial(
        save, _llama, {**SIZES, **_ROPE, **_THREE, "model_type": "llama", "tie_word_embeddings": False}
    ),
    "qwen 2": functools.partial(
        save, _qwen2, {**SIZES, **_ROPE, **_THREE, "model_type": "qwen2", "tie_word_embeddings": True}
    ),
    "qwen 3": functools.partial(
        save, _qwen3, {**SIZES, **_ROPE, **_THREE, "model_type": "qwen3", "tie_word_embeddings": False}
    ),
    "gemma 1": functools.partial(save, _gemma1, {**GEMMA, **_THREE, "model_type": "gemma", "num_key_value_heads": 4}),
    "gemma 2": functools.partial(save, _gemma2, {**GEMMA2, "num_hidden_layers": 2}),
    "gemma 3": functools.partial(save, _gemma3, {**GEMMA3, **_TYPES, "num_hidden_layers": 7}),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))
