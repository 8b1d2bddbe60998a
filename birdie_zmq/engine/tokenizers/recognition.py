"""Recognises the kind of a tokenizer by its methods, so that no library of tokenizers needs to be installed."""

from __future__ import annotations

from typing import Any

from birdie_zmq.engine.tokenizers.hugging_face import RustTokenizer, TransformersTokenizer
from birdie_zmq.engine.tokenizers.kind import TokenizerKind
from birdie_zmq.engine.tokenizers.plain import PlainTokenizer
from birdie_zmq.engine.tokenizers.sentencepiece import SentencePieceTokenizer
from birdie_zmq.engine.tokenizers.tiktoken import TiktokenEncoding


def recognise(tokenizer: Any) -> TokenizerKind:
    """Return a tokenizer behind the interface of its kind.

    Args:
        tokenizer: An object with ``encode`` and ``decode``.
    """
    if callable(tokenizer) and hasattr(tokenizer, "all_special_ids"):
        return TransformersTokenizer(tokenizer)
    if _has_methods(tokenizer, "encode_batch", "token_to_id"):
        return RustTokenizer(tokenizer)
    if _has_methods(tokenizer, "encode_ordinary", "encode_ordinary_batch"):
        return TiktokenEncoding(tokenizer)
    if _has_methods(tokenizer, "bos_id", "eos_id"):
        return SentencePieceTokenizer(tokenizer)
    return PlainTokenizer(tokenizer)


def _has_methods(tokenizer: Any, *names: str) -> bool:
    return all(callable(getattr(tokenizer, name, None)) for name in names)
