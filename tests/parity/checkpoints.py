"""Create small random checkpoints of every family with transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, trainers

import birdie_zmq.models
from tests.parity.variants import Variant

DEMO = Path(birdie_zmq.models.__file__).parent / "demo"


def make_checkpoint(variant: Variant, directory: Path, *, tokenizer_kind: str | None = None) -> Path:
    """Write a checkpoint.

    Its random weights make every part matter: transformers' initial weights leave norms at one and biases at zero, and
    give nearly equal logits for all tokens.

    Args:
        variant: The model.
        directory: The directory to write.
        tokenizer_kind: ``bos`` adds BOS to every text by its post-processor; ``metaspace`` does so too, and encodes
            spaces as Llama 2's tokenizer does, with one added before every text. None adds nothing.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, variant.config)(**variant.values)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    model = getattr(transformers, variant.auto_class).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                mean = 1.0 if name.endswith("weight") and "Gemma" not in variant.config else 0.0
                weight.normal_(mean, 0.2)
            else:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
    shards = {} if variant.shard_bytes is None else {"max_shard_size": variant.shard_bytes}
    model.save_pretrained(directory, **shards)
    _rewrite(directory / "config.json", variant.rewrite)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory / name)
    if tokenizer_kind == "metaspace":
        _metaspace_tokenizer().save(str(directory / "tokenizer.json"))
    if tokenizer_kind in ("bos", "metaspace"):
        processor = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
        }
        _rewrite(directory / "tokenizer.json", {"post_processor": processor})
    return directory


def _metaspace_tokenizer() -> Tokenizer:
    """Train a tokenizer like Llama 2's: spaces are part of words, and unknown characters fall back to bytes."""
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = [" ".join(f"Question: Where does Mira number {n} live? Answer: Fernley with {n} plums" for n in range(60))]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    # Bytes are ordinary tokens, which text cannot contain as special tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    rebuilt: Tokenizer = Tokenizer.from_str(json.dumps(state))
    return rebuilt


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in values.items() if value is not None or name not in changes}
    path.write_text(json.dumps(kept), encoding="utf-8")
