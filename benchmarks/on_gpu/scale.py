"""The sizes of the steps: for an H200, and small ones to try the steps on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """The sizes of the steps.

    Attributes:
        large: The model of most steps, a key of `random_models.SIZES`.
        small: The model of the step recovery.
        long_tokens: Tokens of the text of the step long.
        rows: Rows that are decoded together.
        prompt_tokens: Tokens of a prompt of the step generation.
        answer_tokens: Tokens of its answer.
        capacity: Tokens of a row in the step decode; the last 40 are decoded.
        tree_rows: Rows and tokens of a row of the step trees.
        documents: Questions of the step recovery.
        hf_questions: Questions of the step hf, each with four answers after five examples.
        hf_batch_size: Rows of hf.
        hf_config: Sizes of the Llama of the step hf, as in its config.json.
    """

    large: str
    small: str
    long_tokens: int
    rows: int
    prompt_tokens: int
    answer_tokens: int
    capacity: int
    tree_rows: tuple[int, int]
    documents: int
    hf_questions: int
    hf_batch_size: int
    hf_config: dict[str, Any]


FULL = Scale(
    large="14b",
    small="1b",
    long_tokens=65_536,
    rows=64,
    prompt_tokens=1_900,
    answer_tokens=128,
    capacity=2_048,
    tree_rows=(16, 1024),
    documents=2_000,
    hf_questions=200,
    hf_batch_size=16,
    hf_config={
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
)

TINY = Scale(
    large="tiny",
    small="tiny",
    long_tokens=3_000,
    rows=4,
    prompt_tokens=100,
    answer_tokens=12,
    capacity=256,
    tree_rows=(2, 64),
    documents=200,
    hf_questions=4,
    hf_batch_size=4,
    hf_config={
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
)
