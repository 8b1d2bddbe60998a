"""Variants of Command R, Command R7B and Command A."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

VARIANTS = {
    "cohere": Variant("CohereConfig", {**SIZES, "logit_scale": 0.5}),
    "cohere_norms_of_heads": Variant("CohereConfig", {**SIZES, "use_qk_norm": True, "logit_scale": 0.8}),
    "cohere_untied_biases": Variant(
        "CohereConfig",
        {**SIZES, "logit_scale": 0.5, "attention_bias": True, "tie_word_embeddings": False},
        rewrite={"rope_parameters": None, "rope_theta": 10_000.0, "use_qk_norm": None},
    ),
    "cohere2": Variant("Cohere2Config", {**SIZES, "logit_scale": 0.5, "num_hidden_layers": 7, "sliding_window": 16}),
    "cohere2_old_keys": Variant(
        "Cohere2Config",
        {
            **SIZES,
            "num_hidden_layers": 5,
            "sliding_window": 16,
            "layer_types": [*["sliding_attention", "full_attention"] * 2, "sliding_attention"],
            "logit_scale": 0.25,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        rewrite={
            "rope_parameters": None,
            "rope_theta": 500.0,
            "rope_scaling": None,
            "layer_types": None,
            "sliding_window_pattern": 2,
        },
    ),
}
