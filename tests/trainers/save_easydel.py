"""Saves models with EasyDeL's own code, in an environment of EasyDeL: ``python -m trainers.save_easydel FOLDER``."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import easydel
import jax
import jax.numpy as jnp
from flax import nnx

from .saving import SIZES, TOKENS, randomised, run_all, write

_COMMON = {**SIZES, "num_hidden_layers": 3, "attn_dtype": jnp.float32, "attn_softmax_dtype": jnp.float32}


def save(model_class: Any, config: Any, folder: Path) -> None:
    """Save a model in EasyDeL's own format, and write the logits."""
    model = model_class(
        config=config, dtype=jnp.float32, param_dtype=jnp.float32, precision="highest", rngs=nnx.Rngs(0)
    )
    state = jax.tree.map(lambda x: jnp.asarray(randomised(x, is_norm=x.ndim == 1)), nnx.state(model, nnx.Param))
    nnx.update(model, state)
    with model.mesh:
        logits = model(input_ids=jnp.asarray(TOKENS)).logits
    write(folder, logits)
    model.save_pretrained(str(folder / "checkpoint"))


MODELS = {
    "llama": functools.partial(save, easydel.LlamaForCausalLM, easydel.LlamaConfig(rope_theta=500_000.0, **_COMMON)),
    "qwen 2": functools.partial(save, easydel.Qwen2ForCausalLM, easydel.Qwen2Config(**_COMMON)),
    "qwen 3": functools.partial(
        save, easydel.Qwen3ForCausalLM, easydel.Qwen3Config(tie_word_embeddings=True, **_COMMON)
    ),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))
