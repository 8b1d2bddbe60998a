"""A ``tiktoken.Encoding``. The library is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from birdie_zmq.engine.tokenizers.kind import SpecialName, decode_known


class TiktokenEncoding:
    """A ``tiktoken.Encoding``, whose ``eot_token`` is EOS.

    Text that spells a special token is encoded as ordinary text: ``encode`` itself would raise an error for it.

    Args:
        encoding: The encoding.
    """

    adds_special = False

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self._special = _special_tokens(encoding)
        self._special_ids = frozenset({*self._special.values(), self.special_id("eos_token_id")})

    def encode(self, texts: list[str], *, add_special: bool) -> Sequence[Any]:  # noqa: ARG002 - it adds none
        """Return the token ids of each text, as ordinary text."""
        encoded: Sequence[Any] = self._encoding.encode_ordinary_batch(texts)
        return encoded

    def encode_token(self, text: str) -> Sequence[Any]:
        """Return the id of a special token by its text, or else the token ids of ordinary text."""
        return [self._special[text]] if text in self._special else self.encode([text], add_special=False)[0]

    def decode(self, ids: list[int], *, skip_special: bool) -> Any:
        """Return the text of token ids; ids that the encoding does not have add nothing."""
        if skip_special:
            ids = [id for id in ids if id not in self._special_ids]
        return decode_known(self._encoding.decode, ids)

    def special_id(self, name: SpecialName) -> Any:
        """Return ``eot_token`` for EOS, if the encoding has that special token; BOS is None."""
        if name != "eos_token_id":
            return None
        try:
            return getattr(self._encoding, "eot_token", None)
        except KeyError:  # an encoding without <|endoftext|>
            return None


def _special_tokens(encoding: Any) -> dict[str, int]:
    """Return the ids of the special tokens by their texts."""
    encode = getattr(encoding, "encode_single_token", None)
    texts = getattr(encoding, "special_tokens_set", ())
    return {text: int(encode(text)) for text in texts} if callable(encode) else {}
