"""Any object with ``encode(str) -> list[int]`` and ``decode(list[int]) -> str``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from birdie_zmq.engine.tokenizers.kind import SpecialName, accepted_keywords, checked_ids, decode_known

_PROBE = ("a b", "c")


class PlainTokenizer:
    """An object with ``encode``, of a string or of a list of strings, and ``decode``.

    Args:
        tokenizer: The object. Its ``decode`` may have the parameter ``skip_special_tokens``.
    """

    adds_special = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = BatchEncoder(tokenizer.encode)
        self._skips_special = bool(accepted_keywords(tokenizer.decode, {"skip_special_tokens": True}))

    def encode(self, texts: list[str], *, add_special: bool) -> Sequence[Any]:  # noqa: ARG002 - it adds none
        """Return the token ids of each text."""
        return self._encoder.encode(texts)

    def encode_token(self, text: str) -> Sequence[Any]:
        """Return the token ids of one text."""
        return self._encoder.encode([text])[0]  # type: ignore[no-any-return]

    def decode(self, ids: list[int], *, skip_special: bool) -> Any:
        """Return the text of token ids; ids that the tokenizer does not have add nothing."""
        keywords = {"skip_special_tokens": skip_special} if self._skips_special else {}
        return decode_known(lambda some: self._tokenizer.decode(some, **keywords), ids, self._own_ids)

    def _own_ids(self) -> list[int]:
        return list(self._encoder.encode([_PROBE[0]])[0])

    def special_id(self, name: SpecialName) -> None:
        """Return None: an object names its special tokens by attributes."""


class BatchEncoder:
    """Encodes texts by a function that takes single strings, lists of strings, or both.

    Args:
        encode: The function. It is called with all texts at once if it takes lists, and encodes them like single texts.
    """

    def __init__(self, encode: Callable[[Any], Any]) -> None:
        self._encode = encode
        self._takes_lists: bool | None = None

    def encode(self, texts: list[str]) -> Sequence[Any]:
        """Return the token ids of each text."""
        if self._takes_lists is None:
            self._takes_lists = self._probe_lists()
        return self._encode(texts) if self._takes_lists else [self._encode(text) for text in texts]

    def _probe_lists(self) -> bool:
        try:
            together = checked_ids(self._encode(list(_PROBE)), list(_PROBE))
        except Exception:  # noqa: BLE001 - a tokenizer may reject a list with any error
            return False
        try:
            alone = checked_ids([self._encode(text) for text in _PROBE], list(_PROBE))
        except Exception:  # noqa: BLE001 - one that takes lists may reject a string
            return True
        return together == alone
