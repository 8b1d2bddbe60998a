"""Variants of Ministral 3 and of Mistral 3, which has a vision tower and either Mistral or Ministral 3 as its text part."""

from __future__ import annotations

from typing import Any

from tests.parity.variants.base import SIZES, Variant

_ROPE = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_MINISTRAL3 = {**SIZES, "head_dim": 24, "rope_parameters": _ROPE}


def _with_vision(text: dict[str, Any], *, tied: bool) -> Variant:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    values = {"text_config": text, "vision_config": vision, "image_token_index": 1023, "tie_word_embeddings": tied}
    return Variant("Mistral3Config", values, auto_class="AutoModelForImageTextToText")


VARIANTS = {
    "ministral3": Variant("Ministral3Config", _MINISTRAL3),
    "ministral3_tied_window": Variant(
        "Ministral3Config",
        {
            **_MINISTRAL3,
            "tie_word_embeddings": True,
            "sliding_window": 20,
            "rope_parameters": {**_ROPE, "llama_4_scaling_beta": 0.7, "mscale": 0.5},
        },
    ),
    "mistral3": _with_vision(
        {**SIZES, "model_type": "mistral", "head_dim": 24, "sliding_window": None, "rope_theta": 1e9}, tied=False
    ),
    "mistral3_ministral3_tied": _with_vision(
        {**_MINISTRAL3, "model_type": "ministral3", "tie_word_embeddings": True}, tied=True
    ),
}
