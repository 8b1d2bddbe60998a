"""Variants of Falcon H1."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_MIXER = {"mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 16}
_SCALES = {
    "embedding_multiplier": 2.5,
    "lm_head_multiplier": 0.6,
    "mlp_multipliers": [0.8, 0.7],
    "key_multiplier": 0.9,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.3,
    "ssm_multipliers": [0.7, 1.1, 0.8, 1.2, 0.9],
    "ssm_out_multiplier": 0.6,
}

VARIANTS = {
    "falcon_h1": Variant("FalconH1Config", {**SIZES, **_MIXER, **_SCALES}),
    "falcon_h1_biases_norm_after_gate": Variant(
        "FalconH1Config",
        {
            **SIZES,
            **_MIXER,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        factors={"mamba.in_proj.weight": 0.5},
    ),
    "falcon_h1_norm_before_gate": Variant(
        "FalconH1Config",
        {
            **SIZES,
            **_SCALES,
            "mamba_d_ssm": None,
            "mamba_n_heads": 4,
            "mamba_d_state": 12,
            "mamba_rms_norm": True,
            "mamba_conv_bias": False,
        },
    ),
}
