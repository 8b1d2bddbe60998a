"""Write small tokenizers of each class of transformers, as the files of released checkpoints have them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    " ".join(f"Question: Where does Mira number {n} live?\nAnswer: Fernley with {n} plums" for n in range(60)),
    "Una lives in Oldbrook, naïve café; the neighbours' pears aren't ripe.\n\n\tdef f(x):\n    return x + 1\n" * 8,
]
"""What the small vocabularies are trained on."""

_SENTENCEPIECE_LLAMA = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
_SENTENCEPIECE_GEMMA = {
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
}
_SENTENCEPIECE_T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"}
_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_END = {"content": "<|end|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def sentencepiece_model(kind: str, size: int, ids: dict[str, Any], **options: Any) -> bytes:
    """Train a model of SentencePiece, and return the content of its file."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXTS).split("\n")),
        model_writer=written,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=kind == "bpe",
        minloglevel=2,
        num_threads=1,
        **ids,
        **options,
    )
    return written.getvalue()


def byte_level(special: list[str]) -> Tokenizer:
    """Train a byte-level BPE as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _vocabulary(directory: Path, special: list[str]) -> None:
    """Write only vocab.json and merges.txt."""
    byte_level(special).model.save(str(directory))


def _configured(directory: Path, kind: str, tokenizer_class: str | None, **keys: Any) -> None:
    write_json(directory / "config.json", {"model_type": kind})
    if tokenizer_class is not None:
        keys["tokenizer_class"] = tokenizer_class
    if keys:
        write_json(directory / "tokenizer_config.json", keys)


def _llama_model(directory: Path, tokenizer_class: str | None = "LlamaTokenizer", **keys: Any) -> None:
    """Write the only file of Llama 1 and 2 before there were fast tokenizers: tokenizer.model."""
    model = sentencepiece_model(
        "bpe", 600, _SENTENCEPIECE_LLAMA, add_dummy_prefix=True, normalization_rule_name="identity"
    )
    (directory / "tokenizer.model").write_bytes(model)
    _configured(directory, "llama", tokenizer_class, **(keys and _LLAMA_TOKENS | keys))


def _llama_json(directory: Path, *, legacy: bool, prepend: bool, adds: bool = True, **keys: Any) -> None:
    """Write tokenizer.json and a class of Llama; with `prepend`, spaces are replaced by a normalizer, as until 2024."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replaced = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.normalizer = replaced
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator(TEXTS[0].split(" "), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if prepend:
        tokenizer.normalizer = replaced
    else:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    _configured(directory, "llama", "LlamaTokenizer", legacy=legacy, **(_LLAMA_TOKENS | keys))


def _gemma_model(directory: Path) -> None:
    model = sentencepiece_model(
        "bpe", 600, _SENTENCEPIECE_GEMMA, add_dummy_prefix=False, normalization_rule_name="identity"
    )
    (directory / "tokenizer.model").write_bytes(model)
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _configured(directory, "gemma2", "GemmaTokenizer", add_bos_token=True, add_eos_token=False, **tokens)


def _gemma_json(directory: Path, **keys: Any) -> None:
    """Write tokenizer.json as transformers saves it from tokenizer.model."""
    import transformers

    _gemma_model(directory)
    transformers.AutoTokenizer.from_pretrained(str(directory)).save_pretrained(str(directory))
    (directory / "tokenizer.model").unlink()
    _changed(directory / "tokenizer_config.json", keys)


def _t5_model(directory: Path) -> None:
    (directory / "spiece.model").write_bytes(sentencepiece_model("unigram", 300, _SENTENCEPIECE_T5))
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    _configured(directory, "llama", "T5Tokenizer", **tokens)


def _qwen_vocabulary(directory: Path, **keys: Any) -> None:
    _vocabulary(directory, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    _configured(directory, "qwen2", "Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>", **keys)


def _qwen_json(directory: Path) -> None:
    tokenizer = byte_level(["<|endoftext|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {
        str(tokenizer.get_vocab_size() + i): _END | {"content": content, "special": i < 2}
        for i, content in enumerate(("<|im_start|>", "<|im_end|>", "<tool_call>"))
    }
    keys = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "added_tokens_decoder": added}
    _configured(directory, "qwen2", "Qwen2Tokenizer", add_prefix_space=False, **keys)


def _gpt2_json(directory: Path, tokenizer_class: str | None = None, **keys: Any) -> None:
    byte_level(["<|endoftext|>"]).save(str(directory / "tokenizer.json"))
    _configured(directory, "gpt2", tokenizer_class, **keys)


def _gpt2_vocabulary(directory: Path, **keys: Any) -> None:
    _vocabulary(directory, ["<|endoftext|>"])
    _configured(directory, "gpt2", None, **keys)


def _neox_json(directory: Path, **keys: Any) -> None:
    tokenizer = byte_level(["<|endoftext|>", "<|padding|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (6, 4, 2)])
    tokenizer.save(str(directory / "tokenizer.json"))
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    _configured(directory, "gpt_neox", "GPTNeoXTokenizer", **ends, **keys)


def _bos_json(directory: Path, kind: str, tokenizer_class: str) -> None:
    """Write a byte-level tokenizer.json whose post-processor adds BOS, as Command R's and Bloom's classes have it."""
    tokenizer = byte_level(["<pad>", "<bos>", "<eos>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    _configured(directory, kind, tokenizer_class, add_prefix_space=False, **tokens)


def _codegen_vocabulary(directory: Path) -> None:
    """Write the files of Phi-1.5 and Phi-2: a vocabulary, and runs of spaces as added tokens."""
    _vocabulary(directory, ["<|endoftext|>"])
    size = len(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
    write_json(directory / "added_tokens.json", {" " * n: size + i for i, n in enumerate((6, 4, 2))})
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    _configured(directory, "phi", "CodeGenTokenizer", add_prefix_space=False, **ends)


def _opt_vocabulary(directory: Path) -> None:
    """Write the files of OPT, which puts </s> before each text."""
    _vocabulary(directory, ["<pad>", "</s>"])
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    _configured(directory, "opt", "GPT2Tokenizer", add_bos_token=True, pad_token="<pad>", **ends)


def _fast(directory: Path, files: dict[str, dict[str, Any]] | None = None, **keys: Any) -> None:
    """Write a tokenizer of the general class, with tokens or flags that stand only in other files than tokenizer.json."""
    tokenizer = byte_level(["<|bos|>", "<|eos|>", "<|sep|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    tokens = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    _configured(directory, "llama", "PreTrainedTokenizerFast", **(tokens | _numbered(keys, size)))
    for name, values in (files or {}).items():
        write_json(directory / name, _numbered(values, size))


def _fast_stored(directory: Path) -> None:
    """Write truncation and padding into tokenizer.json, as a training script leaves them there."""
    _fast(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=8, pad_id=2, pad_token="<|sep|>")
    tokenizer.save(str(directory / "tokenizer.json"))


def _fast_template(directory: Path, single: str, **keys: Any) -> None:
    _fast(directory, **keys)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def _numbered(values: Any, size: int) -> Any:
    """Replace the key or the value ``next`` by the first id beyond the vocabulary."""
    if not isinstance(values, dict):
        return size if values == "next" else values
    return {(str(size) if key == "next" else key): _numbered(value, size) for key, value in values.items()}


def _changed(path: Path, keys: dict[str, Any]) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | keys)


def _flagged(**flags: bool) -> dict[str, Any]:
    """Return the tokens of `_fast`, with other flags of one of them, as tokenizer_config.json holds them."""
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    contents = ("<|bos|>", "<|eos|>", "<|sep|>")
    records = {str(id): {"content": content, **plain} for id, content in enumerate(contents)}
    records["2"] |= flags
    return {"added_tokens_decoder": records}


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "llama_model": lambda d: _llama_model(d, legacy=False, add_bos_token=True, add_eos_token=False),
    "llama_model_legacy": lambda d: _llama_model(d, legacy=True, add_bos_token=True),
    "llama_model_without_config": lambda d: _llama_model(d, None),
    "llama_model_eos": lambda d: _llama_model(d, add_bos_token=True, add_eos_token=True),
    "llama_model_no_bos": lambda d: _llama_model(d, add_bos_token=False),
    "llama_prepend_legacy": lambda d: _llama_json(d, legacy=True, prepend=True),
    "llama_prepend": lambda d: _llama_json(d, legacy=False, prepend=True, add_bos_token=True),
    "llama_metaspace": lambda d: _llama_json(d, legacy=False, prepend=False),
    "llama_json_eos": lambda d: _llama_json(d, legacy=False, prepend=True, add_eos_token=True),
    "llama_json_no_template": lambda d: _llama_json(d, legacy=False, prepend=False, adds=False, add_bos_token=True),
    "code_llama_model": lambda d: _llama_model(d, "CodeLlamaTokenizer", add_bos_token=True),
    "gemma_model": _gemma_model,
    "gemma_json": _gemma_json,
    "gemma_json_eos": lambda d: _gemma_json(d, add_eos_token=True),
    "t5_model": _t5_model,
    "qwen2_vocabulary": _qwen_vocabulary,
    "qwen2_vocabulary_tokens": lambda d: _qwen_vocabulary(d, extra_special_tokens=["<|vision|>"]),
    "qwen2_json": _qwen_json,
    "gpt2_bare_config": lambda d: _gpt2_json(d, model_max_length=1024),
    "gpt2_without_config": _gpt2_json,
    "gpt2_prefix_space": lambda d: _gpt2_json(d, "GPT2Tokenizer", add_prefix_space=True),
    "gpt2_no_prefix_space": lambda d: _gpt2_json(d, "GPT2Tokenizer", add_prefix_space=False, add_bos_token=True),
    "gpt2_vocabulary": _gpt2_vocabulary,
    "gpt2_vocabulary_bare_config": lambda d: _gpt2_vocabulary(d, model_max_length=1024),
    "gpt_neox": _neox_json,
    "gpt_neox_bos": lambda d: _neox_json(d, add_bos_token=True, add_prefix_space=True),
    "cohere_json": lambda d: _bos_json(d, "cohere", "CohereTokenizerFast"),
    "bloom_json": lambda d: _bos_json(d, "bloom", "BloomTokenizerFast"),
    "codegen_vocabulary": _codegen_vocabulary,
    "opt_vocabulary": _opt_vocabulary,
    "fast_added_in_config": lambda d: _fast(d, added_tokens_decoder={"next": _END | {"special": True}}),
    "fast_added_ordinary_in_config": lambda d: _fast(d, added_tokens_decoder={"next": _END | {"special": False}}),
    "fast_added_tokens_json": lambda d: _fast(d, {"added_tokens.json": {"<|end|>": "next"}}),
    "fast_special_tokens_map": lambda d: _fast(
        d, {"special_tokens_map.json": {"eos_token": _END, "additional_special_tokens": ["<|more|>", "<|sep|>"]}}
    ),
    "fast_extra_list": lambda d: _fast(d, extra_special_tokens=["<|end|>", "<|more|>"]),
    "fast_extra_dict": lambda d: _fast(d, extra_special_tokens={"image_token": "<|end|>"}),
    "fast_additional": lambda d: _fast(d, additional_special_tokens=["<|end|>", "<|more|>"]),
    "fast_lstrip": lambda d: _fast(d, **_flagged(lstrip=True)),
    "fast_rstrip": lambda d: _fast(d, **_flagged(rstrip=True)),
    "fast_normalized": lambda d: _fast(d, **_flagged(normalized=True)),
    "fast_single_word": lambda d: _fast(d, **_flagged(single_word=True)),
    "fast_pad_as_record": lambda d: _fast(d, pad_token={**_END, "lstrip": True, "__type": "AddedToken"}),
    "fast_stored_truncation": _fast_stored,
    "fast_split_special": lambda d: _fast(d, split_special_tokens=True),
    "fast_bos_by_config": lambda d: _fast(d, add_bos_token=True, add_eos_token=True),
    "fast_bos_template": lambda d: _fast_template(d, "<|bos|> $A"),
    "fast_bos_and_eos_template": lambda d: _fast_template(d, "<|bos|> $A <|eos|>"),
    "fast_eos_template": lambda d: _fast_template(d, "$A <|eos|>"),
    "fast_bos_template_split": lambda d: _fast_template(d, "<|bos|> $A", split_special_tokens=True),
    "fast_clean_up": lambda d: _fast(d, clean_up_tokenization_spaces=True),
}
"""A function that writes each tokenizer into an empty directory."""
