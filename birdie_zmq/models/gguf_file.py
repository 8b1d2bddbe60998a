"""A model in one GGUF file, as llama.cpp uses them: config, tokenizer, and weights that may be quantised.

Read with llama.cpp's own package ``gguf``, which knows every quantisation and the names of tensors. What is left here
is what it leaves to its users: the heads of llama's queries and keys lie in another order there, and a tokenizer is a
few lists. Weights are brought back to float32 one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from birdie_zmq.errors import TokenizerError, UsageError
from birdie_zmq.models.tokenizer import CheckpointTokenizer
from birdie_zmq.models.weight_map import Layout
from birdie_zmq.models.weights import Header, Index, Take

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""The values of ``general.architecture`` that are read; SmolLM's files say llama."""

_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens in ``tokenizer.ggml.token_type``."""


class GgufFile:
    """An open GGUF file.

    Raises:
        UsageError: The package ``gguf`` is not installed.
        ValueError: It is no GGUF file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UsageError(f"{path} is a GGUF file: pip install 'birdie-zmq[gguf]' to read it") from error
        self._gguf = gguf
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{path} is not a whole GGUF file: {error}") from error
        self.architecture = str(self._value("general.architecture", ""))

    def config(self) -> dict[str, Any]:
        """The keys of the Hugging Face ``config.json`` of the same model.

        Raises:
            ValueError: The architecture is not read here, or a key is missing.
        """
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"{self.path}: the architecture {self.architecture!r} is not read from GGUF files, only "
                f"{', '.join(ARCHITECTURES)}; its Hugging Face directory may be (model_tag=DIRECTORY)"
            )
        if self._number("expert_count", 0):
            raise ValueError(f"{self.path}: mixtures of experts are not supported")
        names = {tensor.name for tensor in self._reader.tensors}
        if "rope_freqs.weight" in names:
            raise ValueError(f"{self.path}: RoPE factors (rope_freqs.weight) are not read from GGUF files")
        heads = self._number("attention.head_count")
        config = {
            "model_type": self.architecture,
            "vocab_size": len(self._value("tokenizer.ggml.tokens")),
            "hidden_size": self._number("embedding_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "intermediate_size": self._number("feed_forward_length"),
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._number("rope.freq_base", 10_000.0),
            "head_dim": self._number("attention.key_length", self._number("embedding_length") // heads),
            "attention_bias": self.architecture == "llama" and "blk.0.attn_q.bias" in names,
            "tie_word_embeddings": "output.weight" not in names,
        }
        if self._number("attention.sliding_window", 0):
            raise ValueError(f"{self.path}: sliding windows are not read from GGUF files")
        kind = self._number("rope.scaling.type", "none")
        if kind == "linear":
            config["rope_scaling"] = {"rope_type": kind, "factor": self._number("rope.scaling.factor")}
        elif kind != "none":
            raise ValueError(f"{self.path}: RoPE scaling of the kind {kind} is not read from GGUF files")
        return config

    def tokenizer(self, fingerprint: str | None = None) -> CheckpointTokenizer:
        """The tokenizer in the file.

        Raises:
            TokenizerError: It is of a kind that is not read here, or it is not whole.
        """
        try:
            return self._tokenizer(fingerprint)
        except ValueError as error:
            raise TokenizerError(str(error)) from error

    def _tokenizer(self, fingerprint: str | None) -> CheckpointTokenizer:
        # Files without `pre` were cut in a way that their makers did not say.
        model, pre = self._value("tokenizer.ggml.model", None), self._value("tokenizer.ggml.pre", None)
        if model != "gpt2" or pre not in _PRE_TOKENIZERS:
            raise TokenizerError(
                f"{self.path}: the tokenizer {model}/{pre} is not read from GGUF files, only those of "
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
        ends = {
            end: (tokens[id], id)
            for end in ("bos", "eos")
            if self._value(f"tokenizer.ggml.add_{end}_token", False) and (id := ids[f"{end}_token"]) is not None
        }
        if ends:
            single = [ends["bos"][0]] * ("bos" in ends) + ["$A"] + [ends["eos"][0]] * ("eos" in ends)
            tokenizer.post_processor = processors.TemplateProcessing(
                single=single, pair=[*single, "$B"], special_tokens=list(ends.values())
            )
        return CheckpointTokenizer(
            tokenizer,
            {name: tokens[id] for name, id in ids.items() if id is not None},
            chat_template=self._value("tokenizer.chat_template", None),
            fingerprint=fingerprint,
        )

    def source(self, layout: Layout) -> GgufSource:
        """The weights, under the names of a layout."""
        named = getattr(self._gguf.MODEL_ARCH, self.architecture.upper())
        names = self._gguf.get_tensor_name_map(named, layout.n_layers)
        ours = {str(names.get_name(name, (".weight", ".bias"))): name for name, _ in layout.places()}
        heads = self._number("attention.head_count")
        order = {}
        if self.architecture == "llama":
            order = {"q_proj": heads, "k_proj": self._number("attention.head_count_kv", heads)}
        return GgufSource(self.path, self._gguf, self._reader.tensors, ours, order)

    def _number(self, key: str, *default: Any) -> Any:
        return self._value(f"{self.architecture}.{key}", *default)

    def _value(self, key: str, *default: Any) -> Any:
        found = self._reader.get_field(key)
        if found is not None:
            return found.contents()
        if default:
            return default[0]
        raise ValueError(f"{self.path} has no {key}")


class GgufSource:
    """The tensors of a GGUF file, brought to float32 under Hugging Face's names."""

    def __init__(
        self, path: Path, package: Any, tensors: list[Any], names: dict[str, str], interleaved: dict[str, int]
    ) -> None:
        self.where = str(path)
        self._package = package
        self._tensors: dict[str, Any] = {names.get(tensor.name, tensor.name): tensor for tensor in tensors}
        self._interleaved = interleaved
        self.headers = {
            name: Header(tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name, True)
            for name, tensor in self._tensors.items()
        }

    def read(self) -> Iterator[tuple[str, Take]]:
        """Each tensor in float32; a part of one is cut out of the whole, since blocks of numbers were quantised together."""
        for name in self._tensors:
            whole: list[NDArray[np.float32]] = []

            def take(
                index: Index | None = None, name: str = name, whole: list[NDArray[np.float32]] = whole
            ) -> NDArray[Any]:
                if not whole:
                    whole.append(self._dequantised(name))
                return whole[0] if index is None else whole[0][index]

            yield name, take

    def _dequantised(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[name]
        values = self._package.quants.dequantize(tensor.data, tensor.tensor_type)
        values = np.asarray(values, np.float32).reshape(self.headers[name].shape)
        heads = next((count for part, count in self._interleaved.items() if f".{part}." in name), None)
        return values if heads is None else _halves_together(values, heads)


def _halves_together(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows [n * h, ...] in the order of "rotate_half".

    llama.cpp turns dimension 2i with 2i + 1, Hugging Face dimension i with i + h / 2, so its converter reorders the
    rows of each head; this puts them back.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


_PRE_TOKENIZERS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
"""How text is cut before merging, by ``tokenizer.ggml.pre``."""
