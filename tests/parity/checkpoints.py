"""Create small random checkpoints of every family with transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, trainers

import birdie_zmq.models

DEMO = Path(birdie_zmq.models.__file__).parent / "demo"

MAX_LENGTH = 128
_VOCABULARY = 1024  # of the demo's tokenizer, which all of these checkpoints use
_SIZES = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": MAX_LENGTH,
}
_GPT2_SIZES = {"vocab_size": _VOCABULARY, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": MAX_LENGTH}
_NEOX_SIZES = {name: size for name, size in _SIZES.items() if name != "num_key_value_heads"}


@dataclass(frozen=True)
class Variant:
    """A model to compare: transformers' config class, its values, and the format of its files."""

    config: str
    values: dict[str, Any]
    shard_bytes: int | None = None
    rewrite: dict[str, Any] = field(default_factory=dict)
    """Keys of config.json as older versions of transformers wrote them; None removes a key."""

    @property
    def family(self) -> str:
        return self.config.removesuffix("Config").removesuffix("Text")


def _llama(**values: Any) -> Variant:
    return Variant("LlamaConfig", {**_SIZES, **values})


VARIANTS: dict[str, Variant] = {
    "llama": _llama(),
    "llama_tied_multi_query": _llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama_biases_head_dim": _llama(attention_bias=True, mlp_bias=True, head_dim=24),
    "llama_sharded": Variant("LlamaConfig", _SIZES, shard_bytes=100_000),
    "llama_rope_llama3": _llama(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    ),
    "llama_rope_linear": _llama(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}),
    "llama_rope_old_keys": Variant(
        "LlamaConfig",
        {**_SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
        rewrite={"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "llama_rope_dynamic": _llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}),
    "llama_rope_longrope": _llama(
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
            "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            "factor": 4.0,
            "original_max_position_embeddings": MAX_LENGTH,
        }
    ),
    "mistral": Variant("MistralConfig", {**_SIZES, "sliding_window": None}),
    "mistral_window": Variant("MistralConfig", {**_SIZES, "sliding_window": 20, "head_dim": 32}),
    "ministral": Variant(
        "MinistralConfig",
        {
            **_SIZES,
            "head_dim": 16,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen2": Variant("Qwen2Config", _SIZES),
    "qwen2_tied_window_yarn": Variant(
        "Qwen2Config",
        {
            **_SIZES,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen3": Variant("Qwen3Config", {**_SIZES, "head_dim": 32}),
    "qwen3_biases_tied": Variant("Qwen3Config", {**_SIZES, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma2": Variant("Gemma2Config", {**_SIZES, "head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 20}),
    "gemma2_uncapped": Variant(
        "Gemma2Config",
        {
            **_SIZES,
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
        },
    ),
    "gemma3": Variant(
        "Gemma3TextConfig",
        {**_SIZES, "num_hidden_layers": 7, "head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 20},
    ),
    "gemma3_old_keys": Variant(
        "Gemma3TextConfig",
        {
            **_SIZES,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        rewrite={
            "rope_parameters": None,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10_000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "layer_types": None,
            "sliding_window_pattern": 2,
        },
    ),
    "gemma3_with_vision": Variant(
        "Gemma3Config",
        {
            "text_config": {**_SIZES, "num_hidden_layers": 7, "head_dim": 24, "sliding_window": 16},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 1021,
            "eoi_token_index": 1022,
            "image_token_index": 1023,
        },
    ),
    "gpt2": Variant("GPT2Config", _GPT2_SIZES),
    "gpt2_untied_scaled": Variant(
        "GPT2Config",
        {**_GPT2_SIZES, "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 96},
    ),
    "gpt_neox": Variant("GPTNeoXConfig", _NEOX_SIZES),
    "gpt_neox_old_keys": Variant(
        "GPTNeoXConfig",
        {
            **_NEOX_SIZES,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
        rewrite={"rope_parameters": None, "rotary_emb_base": 500, "rotary_pct": 0.5},
    ),
    "gpt_neox_sequential": Variant(
        "GPTNeoXConfig",
        {
            **_NEOX_SIZES,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        },
    ),
}


def make_checkpoint(variant: Variant, directory: Path, *, tokenizer_kind: str | None = None) -> Path:
    """Write a checkpoint.

    Its random weights make every part matter: transformers' initial weights leave norms at one and biases at zero, and
    give nearly equal logits for all tokens.

    Args:
        variant: The model.
        directory: The directory to write.
        tokenizer_kind: ``bos`` adds BOS to every text by its post-processor; ``metaspace`` does so too, and encodes
            spaces as Llama 2's tokenizer does, with one added before every text. None adds nothing.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, variant.config)(**variant.values)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                mean = 1.0 if name.endswith("weight") and "Gemma" not in variant.config else 0.0
                weight.normal_(mean, 0.2)
            else:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
    shards = {} if variant.shard_bytes is None else {"max_shard_size": variant.shard_bytes}
    model.save_pretrained(directory, **shards)
    _rewrite(directory / "config.json", variant.rewrite)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory / name)
    if tokenizer_kind == "metaspace":
        _metaspace_tokenizer().save(str(directory / "tokenizer.json"))
    if tokenizer_kind in ("bos", "metaspace"):
        processor = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
        }
        _rewrite(directory / "tokenizer.json", {"post_processor": processor})
    return directory


def _metaspace_tokenizer() -> Tokenizer:
    """Train a tokenizer like Llama 2's: spaces are part of words, and unknown characters fall back to bytes."""
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = [" ".join(f"Question: Where does Mira number {n} live? Answer: Fernley with {n} plums" for n in range(60))]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    # Bytes are ordinary tokens, which text cannot contain as special tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    rebuilt: Tokenizer = Tokenizer.from_str(json.dumps(state))
    return rebuilt


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in values.items() if value is not None or name not in changes}
    path.write_text(json.dumps(kept), encoding="utf-8")
