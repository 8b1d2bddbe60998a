"""Small random models and tokenizers for GGUF files, in Hugging Face's form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.registry import build_architecture
from tests.gguf_configs import LLAMA
from tests.gguf_files import write_checkpoint

CORPUS = ["the thinking cat thinks that it isn't there in 1234 or 12 years, the cat; naïve 東京 then there"] * 3
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


class RandomModel(NamedTuple):
    """A model of a family.

    Attributes:
        values: Its complete configuration.
        architecture: What the configuration means.
        tensors: Random weights by Hugging Face's names.
    """

    values: dict[str, Any]
    architecture: Architecture
    tensors: dict[str, NDArray[np.float32]]

    def write(self, path: Path, tokenizer: Tokenizer | None = None, **options: Any) -> Path:
        """Write the model as a GGUF file; the options are those of `write_checkpoint`."""
        return write_checkpoint(path, self.values, self.tensors, tokenizer or byte_level(GPT2), **options)


def random_model(**values: Any) -> RandomModel:
    """Return a model with keys of a configuration, by default those of a Llama."""
    complete = complete_config(values if values.get("model_type", "llama") != "llama" else {**LLAMA, **values})
    architecture = build_architecture(complete, "config.json")
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.standard_normal(slot.spec.shape).astype(np.float32)
        for name, slot in architecture.weight_map().tensors()
    }
    return RandomModel(complete, architecture, tensors)


def byte_level(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    """Train a small byte-level BPE with two control tokens and a user-defined one."""
    tokenizer = Tokenizer(BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=297,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<|user|>", special=False, normalized=False)])
    return tokenizer


def add_rope_factors(factors: list[float]) -> Callable[[gguf.GGUFWriter], None]:
    """Return a function that writes the divisors of the RoPE frequencies."""
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
