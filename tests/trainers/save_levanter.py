"""Saves models with Levanter's own code, in an environment of it: ``python -m trainers.save_levanter FOLDER``."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import haliax as hax
import jax
import jax.numpy as jnp
from levanter.checkpoint import save_checkpoint
from levanter.compat.hf_checkpoints import HFCheckpointConverter
from levanter.layers.attention import AttentionBackend, AttentionMask
from levanter.layers.rotary import Llama3RotaryEmbeddingsConfig
from levanter.models.gemma import Gemma3Config, GemmaConfig
from levanter.models.llama import LlamaConfig
from levanter.models.mistral import MistralConfig
from levanter.models.qwen import Qwen3Config, QwenConfig
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from .saving import TOKENS, VOCABULARY, randomised, run_all, write

_COMMON: dict[str, Any] = {
    "max_seq_len": 64,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "attn_backend": AttentionBackend.VANILLA,
}
_MAX_NORM = 300
"""No matrix of the models has so few values, and each norm and bias does."""


def save(sizes: Any, folder: Path) -> None:
    """Save a step as the trainer does, and its export to Hugging Face's format, and write the logits."""
    vocabulary = hax.Axis("vocab", VOCABULARY)
    model = sizes.model_type.init(vocabulary, sizes, key=jax.random.key(0))

    def changed(x: Any) -> Any:
        if not isinstance(x, jax.Array) or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.asarray(randomised(x, is_norm=x.size < _MAX_NORM))

    model = jax.tree.map(changed, model)
    batch, position = hax.Axis("batch", TOKENS.shape[0]), hax.Axis("position", TOKENS.shape[1])
    with jax.default_matmul_precision("highest"):
        logits = model(hax.named(jnp.asarray(TOKENS), (batch, position)), attn_mask=AttentionMask.causal())
    config = sizes.to_hf_config(VOCABULARY).to_dict() | {"head_dim": 8}
    config |= {"query_pre_attn_scalar": 8} if config["model_type"] == "gemma3_text" else {}
    write(folder, logits.rearrange((batch, position, vocabulary)).array, config)
    save_checkpoint({"model": model, "step": 3}, 3, str(folder / "checkpoint"))
    converter = HFCheckpointConverter(
        type(sizes),
        HfConfigClass=type(sizes.to_hf_config(VOCABULARY)),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE())),
    )
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        converter.save_pretrained(model, str(folder / "exported"), save_reference_code=False, save_tokenizer=False)
    # Levanter leaves out head_dim and query_pre_attn_scalar, whose defaults are those of the released models of Gemma.
    exported = folder / "exported" / "config.json"
    sizes_of_heads = {name: config[name] for name in ("head_dim", "query_pre_attn_scalar") if name in config}
    exported.write_text(json.dumps(json.loads(exported.read_text()) | sizes_of_heads), encoding="utf-8")


_UNSTACKED = {"scan_layers": False, "gradient_checkpointing": False}

MODELS = {
    "llama 3 stacked": functools.partial(save, LlamaConfig(rope=Llama3RotaryEmbeddingsConfig(), **_COMMON)),
    "llama blocks": functools.partial(save, LlamaConfig(tie_word_embeddings=True, **_UNSTACKED, **_COMMON)),
    "mistral": functools.partial(save, MistralConfig(**_COMMON)),
    "qwen 2": functools.partial(save, QwenConfig(**_COMMON)),
    "qwen 3": functools.partial(save, Qwen3Config(**_COMMON)),
    "gemma 1": functools.partial(save, GemmaConfig(**_COMMON)),
    "gemma 3": functools.partial(save, Gemma3Config(**_COMMON)),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))
