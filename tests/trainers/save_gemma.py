"""Saves models with google-deepmind's ``gemma``, in an environment of it: ``python -m trainers.save_gemma FOLDER``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from gemma import gm
from gemma.gm.ckpts import _checkpoint
from gemma.gm.nn import _config, _modules, _transformer

from .saving import GEMMA, GEMMA2, GEMMA3, TOKENS, VOCABULARY, randomised, run_all, write

_LOCAL, _GLOBAL = _modules.AttentionType.LOCAL_SLIDING, _modules.AttentionType.GLOBAL
_NORMS = {"use_post_attn_norm": True, "use_post_ffw_norm": True}
_SCALE = {"query_pre_attn_norm": _config.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_HEAD_DIM}
_GEMMA1 = {"final_logit_softcap": None, "use_post_attn_norm": False, "use_post_ffw_norm": False}
_GEMMA2 = {**_NORMS, **_SCALE, "final_logit_softcap": 30.0, "attn_logits_soft_cap": 50.0, "sliding_window_size": 8}
_GEMMA3 = {
    **_NORMS,
    **_SCALE,
    "final_logit_softcap": None,
    "sliding_window_size": 8,
    "use_qk_norm": True,
    "transpose_gating_einsum": True,
    "local_base_frequency": 10_000,
    "global_base_frequency": 1_000_000,
    "global_scale_factor": 8.0,
}


def save(settings: Mapping[str, Any], hf: Mapping[str, Any], form: Callable[[Any], Any], folder: Path) -> None:
    """Save the parameters of a model of four layers in a form of the tree, and write the logits."""
    heads = hf["num_key_value_heads"]
    kinds = (_GLOBAL,) * 4 if hf["model_type"] == "gemma" else (_LOCAL, _GLOBAL) * 2
    sizes = _config.TransformerConfig(
        num_embed=VOCABULARY,
        embed_dim=32,
        hidden_dim=64,
        num_heads=4,
        head_dim=8,
        num_kv_heads=heads,
        attention_types=kinds,
        **settings,
    )

    class Model(_transformer.Transformer):
        config: _config.TransformerConfig = sizes

    model = Model(dtype=jnp.float32)
    tokens = jnp.asarray(TOKENS)
    params = model.init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(randomised(x, is_norm=x.ndim == 1)), params)
    with jax.default_matmul_precision("highest"):
        logits = model.apply({"params": params}, tokens).logits
    write(folder, logits, {**hf, "num_hidden_layers": 4})
    gm.ckpts.save_params(form(params), str(folder / "checkpoint"), wait_until_finished=True)


def _nested(params: Any) -> Any:
    return params


def _stacked(params: Any) -> Any:
    return _checkpoint._nested_to_stacked(params, 2)


_flat = _checkpoint._nested_to_flat
_TYPES = {"layer_types": ["sliding_attention", "full_attention"] * 2}

MODELS = {
    "gemma 1 nested": functools.partial(
        save, _GEMMA1, {**GEMMA, "model_type": "gemma", "num_key_value_heads": 1}, _nested
    ),
    "gemma 2 nested": functools.partial(save, _GEMMA2, GEMMA2, _nested),
    "gemma 2 flat": functools.partial(save, _GEMMA2, {**GEMMA2, "num_key_value_heads": 4}, _flat),
    "gemma 3 nested": functools.partial(save, _GEMMA3, {**GEMMA3, **_TYPES, "num_key_value_heads": 1}, _nested),
    "gemma 3 stacked": functools.partial(save, _GEMMA3, {**GEMMA3, **_TYPES}, _stacked),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))
