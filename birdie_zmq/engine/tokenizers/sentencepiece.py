"""A ``sentencepiece.SentencePieceProcessor``. The library is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from birdie_zmq.engine.tokenizers.kind import SpecialName, accepted_keywords, decode_known
from birdie_zmq.engine.tokenizers.plain import BatchEncoder

_SPECIAL_METHODS = ("bos_id", "eos_id", "pad_id", "unk_id")


class SentencePieceTokenizer:
    """A ``SentencePieceProcessor``, whose ``bos_id()`` and ``eos_id()`` are BOS and EOS.

    Text that spells a control symbol, such as ``<s>``, is encoded as ordinary text: SentencePiece encodes no text to a
    control symbol. Texts end without EOS and are never sampled, whatever the processor was constructed with.

    Args:
        processor: The processor; it adds BOS by default if it was constructed with ``add_bos=True``.
    """

    adds_special = True

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        fixed = accepted_keywords(
            processor.encode, {"out_type": int, "add_eos": False, "reverse": False, "enable_sampling": False}
        )
        self._default = BatchEncoder(partial(processor.encode, **fixed))
        bare = fixed | accepted_keywords(processor.encode, {"add_bos": False})
        self._bare = BatchEncoder(partial(processor.encode, **bare))
        found = (_id_or_none(processor, name) for name in _SPECIAL_METHODS)
        self._special_ids = frozenset(id for id in found if id is not None)

    def encode(self, texts: list[str], *, add_special: bool) -> Sequence[Any]:
        """Return the token ids of each text; with `add_special`, with BOS if the processor adds it."""
        return (self._default if add_special else self._bare).encode(texts)

    def encode_token(self, text: str) -> Sequence[Any]:
        """Return the id of a control symbol by its text, or else the token ids of ordinary text."""
        convert, is_control = (getattr(self._processor, name, None) for name in ("piece_to_id", "is_control"))
        if callable(convert) and callable(is_control) and is_control(convert(text)):
            return [convert(text)]
        return self._bare.encode([text])[0]  # type: ignore[no-any-return]

    def decode(self, ids: list[int], *, skip_special: bool) -> Any:
        """Return the text of token ids; ids that the processor does not have add nothing."""
        if skip_special:
            ids = [id for id in ids if id not in self._special_ids]
        return decode_known(self._processor.decode, ids)

    def special_id(self, name: SpecialName) -> int | None:
        """Return ``bos_id()`` or ``eos_id()``; None if the processor has no such token."""
        return _id_or_none(self._processor, name.replace("_token_id", "_id"))


def _id_or_none(processor: Any, name: str) -> int | None:
    """Return the id that a method of the processor returns; None for -1, which means that there is none."""
    method = getattr(processor, name, None)
    id = int(method()) if callable(method) else -1
    return id if id >= 0 else None
