"""What differs between the architectures of GGUF files: llama.cpp's names and keys, and changed tensors.

An architecture is listed here only once tests/parity shows that a file, written as llama.cpp's converter writes it, gives
the scores of the Hugging Face checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from birdie_zmq.models import gguf_config as config
from birdie_zmq.models import gguf_gemma as gemma
from birdie_zmq.models.gguf_config import ConfigKeys
from birdie_zmq.models.gguf_layouts import GROUPED, NORMS_PLUS_ONE, ROTATED_PAIRS, TRANSPOSED, Layouts
from birdie_zmq.models.gguf_metadata import GgufMetadata

_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_GPT2_SIZES = {
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
    "n_positions": "context_length",
}
_FALCON_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "ffn_hidden_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_BLOOM_SIZES = {
    "hidden_size": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "seq_length": "context_length",
}
_RMS_EPSILON = "attention.layer_norm_rms_epsilon"
_EPSILON = "attention.layer_norm_epsilon"


@dataclass(frozen=True)
class GgufArchitecture:
    """How llama.cpp stores a family.

    Attributes:
        model_type: The family, by Hugging Face's name.
        epsilon: The configuration's key for the epsilon of the norms, and the file's.
        more: Returns the keys of the configuration that are not sizes.
        layouts: The tensors that the converter changes.
        sizes: The file's keys by the configuration's.
    """

    model_type: str
    epsilon: tuple[str, str]
    more: Callable[[GgufMetadata], ConfigKeys]
    layouts: Layouts = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=lambda: _SIZES)

    def read_config(self, file: GgufMetadata) -> ConfigKeys:
        """Return the keys of the Hugging Face ``config.json`` of the same model.

        Raises:
            ValueError: A key is missing, or the file requests an unsupported feature.
        """
        name, key = self.epsilon
        keys: ConfigKeys = {"model_type": self.model_type}
        keys |= {size: file.integer(stored) for size, stored in self.sizes.items()}
        keys |= {"vocab_size": _vocab_size(file), name: file.number(key)}
        keys |= {"tie_word_embeddings": "output.weight" not in file.shapes}
        keys |= self.more(file)
        if file.optional_number("expert_count"):
            raise ValueError(f"{file.path}: mixtures of experts are not supported")
        file.refuse_unused()
        return keys


def find_architecture(file: GgufMetadata) -> GgufArchitecture:
    """Return the architecture of a file.

    Raises:
        ValueError: It is not supported.
    """
    if file.architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: the architecture {file.architecture!r} is not supported in GGUF files, only "
            f"{', '.join(ARCHITECTURES)}; try its Hugging Face directory (model_tag=DIRECTORY)"
        )
    return ARCHITECTURES[file.architecture]


def _vocab_size(file: GgufMetadata) -> int:
    return file.shape("token_embd.weight")[0]


_RMS = ("rms_norm_eps", _RMS_EPSILON)

ARCHITECTURES = {
    "llama": GgufArchitecture("llama", _RMS, config.llama, ROTATED_PAIRS),
    "qwen2": GgufArchitecture("qwen2", _RMS, config.with_heads),
    "qwen3": GgufArchitecture("qwen3", _RMS, config.qwen3),
    "smollm3": GgufArchitecture("smollm3", _RMS, config.smollm3, ROTATED_PAIRS),
    "mistral3": GgufArchitecture("ministral3", _RMS, config.mistral3, ROTATED_PAIRS),  # or mistral
    "granite": GgufArchitecture("granite", _RMS, config.granite, ROTATED_PAIRS),
    "olmo2": GgufArchitecture("olmo2", _RMS, config.olmo2),  # or olmo3
    "exaone4": GgufArchitecture("exaone4", _RMS, config.exaone4),
    "gemma": GgufArchitecture("gemma", _RMS, config.with_heads, NORMS_PLUS_ONE),
    "gemma2": GgufArchitecture("gemma2", _RMS, config.gemma2, NORMS_PLUS_ONE),
    "gemma3": GgufArchitecture("gemma3_text", _RMS, config.gemma3, NORMS_PLUS_ONE),
    "gemma3n": GgufArchitecture("gemma3n_text", _RMS, gemma.gemma3n, sizes=gemma.SIZES),
    "gemma4": GgufArchitecture("gemma4_text", _RMS, gemma.gemma4, sizes=gemma.SIZES),
    "phi2": GgufArchitecture("phi", ("layer_norm_eps", _EPSILON), config.with_partial_rope),
    "phi3": GgufArchitecture("phi3", _RMS, config.phi3),
    "glm4": GgufArchitecture("glm4", _RMS, config.glm4),
    "command-r": GgufArchitecture("cohere", ("layer_norm_eps", _EPSILON), config.command_r),
    "cohere2": GgufArchitecture("cohere2", ("layer_norm_eps", _EPSILON), config.cohere2),
    "starcoder2": GgufArchitecture("starcoder2", ("norm_epsilon", _EPSILON), config.starcoder2),
    "stablelm": GgufArchitecture("stablelm", ("layer_norm_eps", _EPSILON), config.stablelm),
    "falcon": GgufArchitecture("falcon", ("layer_norm_epsilon", _EPSILON), config.falcon, GROUPED, _FALCON_SIZES),
    "bloom": GgufArchitecture("bloom", ("layer_norm_epsilon", _EPSILON), config.bloom, GROUPED, _BLOOM_SIZES),
    "gpt2": GgufArchitecture("gpt2", ("layer_norm_epsilon", _EPSILON), config.without_groups, TRANSPOSED, _GPT2_SIZES),
    "gptneox": GgufArchitecture("gpt_neox", ("layer_norm_eps", _EPSILON), config.gpt_neox, GROUPED),
}
"""The supported architectures, by the value of ``general.architecture``. Files of Mistral and SmolLM have llama."""
