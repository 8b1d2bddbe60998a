"""Saves models with EasyDeL's own code, in an environment of EasyDeL: ``python -m trainers.save_easydel FOLDER``."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import easydel
import jax
import jax.numpy as jnp
import numpy as np
from easydel.infra.base_config import EasyDeLBaseConfig
from easydel.infra.utils import ModuleCaches
from easydel.layers import get_frequencies
from flax import nnx

from .saving import SIZES, TOKENS, randomised, run_all, write

_COMMON = {**SIZES, "num_hidden_layers": 3, "attn_dtype": jnp.float32, "attn_softmax_dtype": jnp.float32}


class UnroundedConfig:
    """The method of EasyDeL's configurations that makes the tables of cos and sin, without rounding them to bfloat16."""

    def get_basic_frequencies(
        self, head_size: int | None = None, rotary_dim: int | None = None, base: Any = None
    ) -> Any:
        """Return the tables in float32."""
        config: Any = self
        width = head_size or config.head_dim
        tables = get_frequencies(
            head_size=width,
            rotary_dim=rotary_dim or width,
            max_position=config.granted_freq_max_position_embedding,
            base=base or config.rope_theta,
            rope_scaling=config._get_rope_config().to_dict(),
        )
        assert tables.dtype == jnp.float32
        return ModuleCaches(tables)


def save(model_class: Any, config: Any, folder: Path) -> None:
    """Save a model in EasyDeL's own format, and write the logits: as they are, and with tables in float32."""
    model = new_model(model_class, config)
    is_gemma = "gemma" in config.model_type
    # A norm of Gemma holds its weight minus one, and is initialised to ones all the same.
    state = jax.tree.map(
        lambda x: jnp.asarray(randomised(np.zeros_like(x) if is_gemma else x, is_norm=x.ndim == 1)),
        nnx.state(model, nnx.Param),
    )
    nnx.update(model, state)
    write(folder, logits_of(model))
    (folder / "logits.npy").rename(folder / "rounded.npy")
    model.save_pretrained(str(folder / "checkpoint"))
    rounding = EasyDeLBaseConfig.get_basic_frequencies
    try:
        EasyDeLBaseConfig.get_basic_frequencies = UnroundedConfig.get_basic_frequencies
        unrounded = new_model(model_class, config)
        nnx.update(unrounded, state)
        write(folder, logits_of(unrounded))
    finally:
        EasyDeLBaseConfig.get_basic_frequencies = rounding


def new_model(model_class: Any, config: Any) -> Any:
    """Return a model in float32."""
    return model_class(config=config, dtype=jnp.float32, param_dtype=jnp.float32, precision="highest", rngs=nnx.Rngs(0))


def logits_of(model: Any) -> Any:
    """Return the logits of the tokens."""
    with model.mesh:
        return model(input_ids=jnp.asarray(TOKENS)).logits


MODELS = {
    "llama": functools.partial(save, easydel.LlamaForCausalLM, easydel.LlamaConfig(rope_theta=500_000.0, **_COMMON)),
    "mistral": functools.partial(
        save, easydel.MistralForCausalLM, easydel.MistralConfig(sliding_window=None, **_COMMON)
    ),
    "mistral windowed": functools.partial(
        save, easydel.MistralForCausalLM, easydel.MistralConfig(sliding_window=8, **_COMMON)
    ),
    "gemma 1": functools.partial(save, easydel.GemmaForCausalLM, easydel.GemmaConfig(**_COMMON)),
    "qwen 2": functools.partial(save, easydel.Qwen2ForCausalLM, easydel.Qwen2Config(**_COMMON)),
    "qwen 3": functools.partial(
        save, easydel.Qwen3ForCausalLM, easydel.Qwen3Config(tie_word_embeddings=True, **_COMMON)
    ),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))
