"""What describes a checkpoint to compare, and sizes that the variants share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_LENGTH = 128
VOCABULARY = 1024
"""Of the demo's tokenizer, which all of these checkpoints use."""

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": MAX_LENGTH,
}


@dataclass(frozen=True)
class Variant:
    """A model to compare: transformers' config class, its values, and the format of its files."""

    config: str
    values: dict[str, Any]
    shard_bytes: int | None = None
    rewrite: dict[str, Any] = field(default_factory=dict)
    """Keys of config.json as older versions of transformers wrote them; None removes a key."""
    auto_class: str = "AutoModelForCausalLM"
    """transformers' class that loads it with its LM head."""

    @property
    def family(self) -> str:
        return self.config.removesuffix("Config").removesuffix("Text")
