"""Read a GGUF file of llama.cpp: config, tokenizer, and weights, which may be quantised.

llama.cpp's own package ``gguf`` implements every quantisation and the names of tensors. This module does the
rest: it restores the row order of llama's query and key heads, and builds the tokenizer from the lists in the file.
Weights are dequantised to float32 one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from birdie_zmq.errors import TokenizerError, UsageError
from birdie_zmq.models.gguf_parts import gguf_parts
from birdie_zmq.models.tensor_source import Index, TensorHeader, TensorReader
from birdie_zmq.models.tokenizer import CheckpointTokenizer, wrap_tokenizer
from birdie_zmq.models.weight_map import WeightMap

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""The supported values of ``general.architecture``; SmolLM's files have llama."""

_ROPE_FACTORS = "rope_freqs.weight"
"""The tensor with the divisors of the RoPE frequencies, into which llama.cpp converts Llama 3.1's scaling."""

_CONTROL, _USER_DEFINED = 3, 4
"""Token types in ``tokenizer.ggml.token_type``."""


class GgufFile:
    """An open GGUF file, or all parts of a split one, whose first part is named.

    Raises:
        UsageError: The package ``gguf`` is not installed.
        FileNotFoundError: A part is missing.
        ValueError: A file is not a complete GGUF file, or it is a part other than the first.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UsageError(
                f"{path} is a GGUF file, and the package gguf is not installed; run: pip install 'birdie-zmq[gguf]'"
            ) from error
        self._gguf = gguf
        self.path = path
        parts = gguf_parts(path)
        readers = [self._open(part) for part in parts]
        self._reader = readers[0]
        for number, (part, reader) in enumerate(zip(parts, readers, strict=True)):
            found = [reader.get_field(f"split.{key}") for key in ("no", "count")]
            no, count = (
                default if field is None else int(field.contents())
                for field, default in zip(found, (0, 1), strict=True)
            )
            if (no, max(count, 1)) != (number, len(parts)):
                raise ValueError(
                    f"{part} says that it is part {no + 1} of {count} of a split GGUF model, and its name does not; rename "
                    f"the parts to NAME-00001-of-{count:05}.gguf and so on, and name the first"
                )
        self._tensors = [tensor for reader in readers for tensor in reader.tensors]
        self.architecture = str(self._value("general.architecture", ""))

    def _open(self, path: Path) -> Any:
        try:
            return self._gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{path} is not a complete GGUF file: {error}") from error

    def config(self) -> dict[str, Any]:
        """Return the keys of the Hugging Face ``config.json`` of the same model.

        Raises:
            ValueError: The architecture is not supported, or a key is missing.
        """
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"{self.path}: the architecture {self.architecture!r} is not supported in GGUF files, only "
                f"{', '.join(ARCHITECTURES)}; try its Hugging Face directory (model_tag=DIRECTORY)"
            )
        if self._model_value("expert_count", 0):
            raise ValueError(f"{self.path}: mixtures of experts are not supported")
        names = {tensor.name for tensor in self._tensors}
        heads = self._model_value("attention.head_count")
        config = {
            "model_type": self.architecture,
            "vocab_size": len(self._value("tokenizer.ggml.tokens")),
            "hidden_size": self._model_value("embedding_length"),
            "num_hidden_layers": self._model_value("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._model_value("attention.head_count_kv", heads),
            "intermediate_size": self._model_value("feed_forward_length"),
            "max_position_embeddings": self._model_value("context_length"),
            "rms_norm_eps": self._model_value("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._model_value("rope.freq_base", 10_000.0),
            "head_dim": self._model_value("attention.key_length", self._model_value("embedding_length") // heads),
            "attention_bias": self.architecture == "llama" and "blk.0.attn_q.bias" in names,
            "tie_word_embeddings": "output.weight" not in names,
        }
        if self._model_value("attention.sliding_window", 0):
            raise ValueError(f"{self.path}: sliding windows are not supported in GGUF files")
        rotated = self._model_value("rope.dimension_count", config["head_dim"])
        if rotated != config["head_dim"]:
            raise ValueError(
                f"{self.path}: heads of {config['head_dim']} dimensions with {rotated} rotated are not supported"
            )
        scaling = self._rope_scaling()
        return config | ({"rope_scaling": scaling} if scaling else {})

    def _rope_scaling(self) -> dict[str, Any]:
        """Return ``rope_scaling`` of the config; empty without.

        Raises:
            ValueError: The scaling is not supported, or the RoPE factors of the file are damaged.
        """
        kind = self._model_value("rope.scaling.type", "none")
        factors = self._rope_factors()
        if factors and kind != "none":
            raise ValueError(f"{self.path}: {_ROPE_FACTORS} beside RoPE scaling of the type {kind} is not supported")
        if factors:
            return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0} | {
                "attention_factor": 1.0,
                "original_max_position_embeddings": 2**31,  # they hold for a text of any length
            }
        if kind == "none":
            return {}
        if kind not in ("linear", "yarn"):
            raise ValueError(f"{self.path}: RoPE scaling of the type {kind} is not supported in GGUF files")
        scaling = {"rope_type": kind, "factor": self._model_value("rope.scaling.factor")}
        if kind == "linear":
            return scaling
        for key in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"):
            if self._model_value(f"rope.scaling.{key}", None) is not None:
                raise ValueError(f"{self.path}: the key {self.architecture}.rope.scaling.{key} is not supported")
        return scaling | {
            "original_max_position_embeddings": self._model_value("rope.scaling.original_context_length"),
            "beta_fast": self._model_value("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": self._model_value("rope.scaling.yarn_beta_slow", 1.0),
        }

    def _rope_factors(self) -> list[float]:
        """Return the divisors of the RoPE frequencies; none without such a tensor."""
        tensor = next((tensor for tensor in self._tensors if tensor.name == _ROPE_FACTORS), None)
        if tensor is None:
            return []
        values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        factors = [float(value) for value in np.asarray(values, np.float32).reshape(-1)]
        width = self._model_value("rope.dimension_count", 2 * len(factors))
        if len(factors) != width // 2 or not all(factor > 0 for factor in factors):
            raise ValueError(f"{self.path}: {_ROPE_FACTORS} must be {width // 2} numbers above 0, not {factors}")
        return factors

    def tokenizer(self, fingerprint: str | Callable[[], str] | None = None) -> CheckpointTokenizer:
        """Read the tokenizer in the file.

        Raises:
            TokenizerError: Its type is not supported, or it is incomplete.
        """
        try:
            return self._tokenizer(fingerprint)
        except ValueError as error:
            raise TokenizerError(str(error)) from error

    def _tokenizer(self, fingerprint: str | Callable[[], str] | None) -> CheckpointTokenizer:
        # Files without `pre` do not name their pre-tokenizer.
        model, pre = self._value("tokenizer.ggml.model", None), self._value("tokenizer.ggml.pre", None)
        if model != "gpt2" or pre not in _PRE_TOKENIZERS:
            raise TokenizerError(
                f"{self.path}: the tokenizer {model}/{pre} is not supported in GGUF files, only "
                f"gpt2/{', gpt2/'.join(_PRE_TOKENIZERS)}; name a directory that has its tokenizer.json with "
                "tokenizer=DIRECTORY in model_args"
            )
        tokens: list[str] = self._value("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ", 1)) for merge in self._value("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self._value("tokenizer.ggml.token_type", [])
        for token, kind in zip(tokens, kinds, strict=False):
            if kind in (_CONTROL, _USER_DEFINED):
                tokenizer.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
        ids = {
            name: self._value(f"tokenizer.ggml.{key}_token_id", None)
            for name, key in (
                ("bos_token", "bos"),
                ("eos_token", "eos"),
                ("unk_token", "unknown"),
                ("pad_token", "padding"),
            )
        }
        added = {
            name: (tokens[id], id)
            for name in ("bos", "eos")
            if self._value(f"tokenizer.ggml.add_{name}_token", False) and (id := ids[f"{name}_token"]) is not None
        }
        if added:
            single = [added["bos"][0]] * ("bos" in added) + ["$A"] + [added["eos"][0]] * ("eos" in added)
            tokenizer.post_processor = processors.TemplateProcessing(
                single=single, pair=[*single, "$B"], special_tokens=list(added.values())
            )
        special = {name: tokens[id] for name, id in ids.items() if id is not None}
        return wrap_tokenizer(tokenizer, special, self._value("tokenizer.chat_template", None), fingerprint)

    def source(self, weight_map: WeightMap) -> GgufSource:
        """Return the weights, under the names of a weight map.

        Raises:
            ValueError: The file has a tensor that the model does not use.
        """
        model_arch = getattr(self._gguf.MODEL_ARCH, self.architecture.upper())
        names = self._gguf.get_tensor_name_map(model_arch, weight_map.n_layers)
        hf_names = {str(names.get_name(name, (".weight", ".bias"))): name for name, _ in weight_map.tensors()}
        heads = self._model_value("attention.head_count")
        interleaved = {}
        if self.architecture == "llama":
            interleaved = {"q_proj": heads, "k_proj": self._model_value("attention.head_count_kv", heads)}
        tensors = [tensor for tensor in self._tensors if tensor.name != _ROPE_FACTORS]
        unknown = [tensor.name for tensor in tensors if tensor.name not in hf_names]
        if unknown:
            raise ValueError(f"{self.path} has the tensor {unknown[0]}, which this architecture does not use")
        return GgufSource(self.path, self._gguf, tensors, hf_names, interleaved)

    def _model_value(self, key: str, *default: Any) -> Any:
        return self._value(f"{self.architecture}.{key}", *default)

    def _value(self, key: str, *default: Any) -> Any:
        field = self._reader.get_field(key)
        if field is not None:
            return field.contents()
        if default:
            return default[0]
        raise ValueError(f"{self.path} has no key {key}")


class GgufSource:
    """The tensors of a GGUF file, dequantised to float32, under Hugging Face's names.

    Args:
        path: The file, for error messages.
        package: The module ``gguf``.
        tensors: The tensors of its reader.
        names: Hugging Face's name of each tensor.
        interleaved: For projections with rows to reorder, the number of heads, by a part of the projection's name.
    """

    def __init__(
        self, path: Path, package: Any, tensors: list[Any], names: dict[str, str], interleaved: dict[str, int]
    ) -> None:
        self.location = str(path)
        self._package = package
        self._tensors: dict[str, Any] = {names[tensor.name]: tensor for tensor in tensors}
        self._interleaved = interleaved
        self.headers = {
            name: TensorHeader(tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name, True)
            for name, tensor in self._tensors.items()
        }

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor in float32. A slice is taken from the whole tensor, because numbers are quantised in blocks."""
        for name in self._tensors:
            cache: list[NDArray[np.float32]] = []

            def read_tensor(
                index: Index | None = None, name: str = name, cache: list[NDArray[np.float32]] = cache
            ) -> NDArray[Any]:
                if not cache:
                    cache.append(self._dequantise(name))
                return cache[0] if index is None else cache[0][index]

            yield name, read_tensor

    def equal(self, first: str, second: str) -> bool:
        """Return whether two tensors have the same shape and values."""
        return np.array_equal(self._dequantise(first), self._dequantise(second))

    def _dequantise(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[name]
        values = self._package.quants.dequantize(tensor.data, tensor.tensor_type)
        values = np.asarray(values, np.float32).reshape(self.headers[name].shape)
        heads = next((count for part, count in self._interleaved.items() if f".{part}." in name), None)
        return values if heads is None else _to_rotate_half_order(values, heads)


def _to_rotate_half_order(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows [n * h, ...] for "rotate_half".

    llama.cpp rotates dimension 2i with 2i + 1; Hugging Face rotates dimension i with i + h / 2. So llama.cpp's
    converter reorders the rows of each head; this restores the original order.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


_PRE_TOKENIZERS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
"""The pre-tokenizers, by ``tokenizer.ggml.pre``."""
