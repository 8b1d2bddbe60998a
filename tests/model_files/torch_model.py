"""A model file for tests of the engine torch: a small random decoder over bytes, in several forms.

The tag selects the form in which `load_model` returns it, or a failure.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

VOCABULARY = 258
MAX_LENGTH = 128


class Bytes:
    """A tokenizer with one token per byte of UTF-8, and two special tokens."""

    bos_token_id = 256
    eos_token_id = 257
    model_max_length = MAX_LENGTH

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("latin-1")


class Recurrent(torch.nn.Module):
    """A GRU with dropout, which must be off during evaluation."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, width)
        self.mixing = torch.nn.GRU(width, width, batch_first=True)
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(width, VOCABULARY)

    def hidden(self, tokens: Any) -> Any:
        return self.dropout(self.mixing(self.embedding(tokens))[0])

    def forward(self, tokens: Any) -> Any:
        return self.head(self.hidden(tokens))


def module_of(seed: int) -> Recurrent:
    torch.manual_seed(seed)
    module = Recurrent()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(4.0)
    return module


def load_model(model_tag: str, seed: int = 0, **kwargs: Any) -> Any:
    from birdie_zmq import Model

    module = module_of(seed)
    match model_tag:
        case "module":
            return module
        case "method":
            return module.forward
        case "callable":
            module.eval()
            return lambda tokens: module(tokens)
        case "pair":
            return lambda params, tokens: torch.func.functional_call(module.eval(), params, (tokens,)), dict(
                module.named_parameters()
            )
        case "parts":
            return Model(
                params=module, hidden=lambda m, tokens: m.hidden(tokens), unembed=lambda m, hidden: m.head(hidden)
            )
        case "object":
            return Model(params=module, logits=lambda m, tokens: SimpleNamespace(logits=m(tokens)))
        case "hungry":
            module.eval()
            return lambda tokens: hungry(module, tokens)
        case "jax":
            import jax

            return jax.jit(lambda tokens: tokens)
        case "modules":  # writes the modules of this process
            Path(kwargs["written"]).write_text(json.dumps(sorted(sys.modules)))
            return module
    raise ValueError(f"these tests have no model {model_tag!r}")


def hungry(module: Any, tokens: Any) -> Any:
    """Compute logits, with memory for only a few rows."""
    if tokens.numel() > 256:
        torch.empty(2**50)
    return module(tokens)


def load_tokenizer(model_tag: str, **kwargs: Any) -> Bytes:
    return Bytes()
