"""Tokenizers of SentencePiece's kind, and how llama.cpp's converter writes them."""

import re
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from tests.gguf_models import CORPUS

LLAMA_SPECIAL = ["<unk>", "<s>", "</s>"]
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]


def sentence_piece(*, prefix: bool, gemma: bool = False) -> Tokenizer:
    """Train a tokenizer like SentencePiece's: spaces are part of words, and unknown characters fall back to bytes."""
    special = GEMMA_SPECIAL if gemma else LLAMA_SPECIAL
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(word for word in text.split() for _ in "xy") for text in CORPUS], trainer)
    state = re.sub(r'"added_tokens":\[.*?\](?=,"normalizer")', '"added_tokens":[]', tokenizer.to_str())
    rebuilt: Tokenizer = Tokenizer.from_str(state)
    rebuilt.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return rebuilt


def add_sentence_piece(writer: gguf.GGUFWriter, tokenizer: Tokenizer, *, gemma: bool) -> None:
    """Write a tokenizer of `sentence_piece`."""
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    special = GEMMA_SPECIAL if gemma else LLAMA_SPECIAL
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for token in special:
        kinds[vocabulary[token]] = gguf.TokenType.CONTROL
    kinds[vocabulary["<unk>"]] = gguf.TokenType.UNKNOWN
    for id, token in enumerate(tokens):
        if re.fullmatch("<0x..>", token):
            kinds[id] = gguf.TokenType.BYTE
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(
        [" " * len(token) if gemma and set(token) == {"▁"} and len(token) > 1 else token for token in tokens]
    )
    # The trainer numbers tokens in the order of their merges, as SentencePiece does, and so the scores fall.
    writer.add_token_scores([0.0] * len(tokens) if gemma else [-float(id) for id in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(vocabulary["<bos>" if gemma else "<s>"])
    writer.add_unk_token_id(vocabulary["<unk>"])
    if gemma:
        writer.add_add_space_prefix(False)
