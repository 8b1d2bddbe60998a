"""Tokenizers of Hugging Face: those of transformers, and ``tokenizers.Tokenizer``. Neither library is imported.

Both encode texts in the Rust library tokenizers. Its ``encode_batch_fast`` returns the same ids as ``encode_batch``
and is faster, because it computes no offsets.

transformers builds masks and one object per text in Python beside the ids. `TransformersEncoder` therefore calls the
Rust tokenizer itself, if that is all that the class would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from birdie_zmq.engine.tokenizers.kind import SpecialName, decode_known

_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "[BOS]")
_EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>")
_NAMES: dict[SpecialName, tuple[str, ...]] = {"bos_token_id": _BOS_NAMES, "eos_token_id": _EOS_NAMES}

_BASE = "transformers.tokenization_utils_base"
_BACKEND = "transformers.tokenization_utils_tokenizers"
_METHODS = {
    "__call__": _BASE,
    "_get_padding_truncation_strategies": _BASE,
    "_encode_plus": _BACKEND,
    "_convert_encoding": _BACKEND,
    "set_truncation_and_padding": _BACKEND,
}
"""The methods through which transformers 5 encodes texts in the Rust tokenizer, and the modules that define them."""

_PROBE = ("", " a b", "Two words.\n\n", "naïve 日本 12")


class TransformersEncoder:
    """Encodes texts as a tokenizer of transformers does when it is called, without its masks where possible.

    The Rust tokenizer is called directly if the class encodes texts by the methods of transformers' own
    ``TokenizersBackend``, and a few probe texts have the same ids both ways. Otherwise the tokenizer is called.

    Args:
        tokenizer: A tokenizer of transformers.

    Attributes:
        backend: The ``tokenizers.Tokenizer`` that is called directly; None if the tokenizer is called instead.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.backend: Any = tokenizer.backend_tokenizer if _encodes_in_rust(tokenizer) else None
        if self.backend is not None and not self._is_same():
            self.backend = None

    def encode(self, texts: list[str], *, add_special: bool = True) -> Sequence[Any]:
        """Return the token ids of each text.

        Args:
            texts: At least one text.
            add_special: Whether special tokens are added as by default; False adds none.
        """
        if self.backend is None:
            return self._call(texts, add_special)
        return self._encode_in_rust(texts, add_special)

    def _call(self, texts: list[str], add_special: bool) -> Sequence[Any]:
        keywords = {} if add_special else {"add_special_tokens": False}
        ids: Sequence[Any] = self._tokenizer(texts, **keywords)["input_ids"]
        return ids

    def _encode_in_rust(self, texts: list[str], add_special: bool) -> list[list[int]]:
        """Set what transformers sets before it encodes, and encode."""
        split = bool(getattr(self._tokenizer, "split_special_tokens", False))
        if self.backend.encode_special_tokens != split:
            self.backend.encode_special_tokens = split
        return encode_batch(self.backend, texts, add_special=add_special)

    def _is_same(self) -> bool:
        special = getattr(self._tokenizer, "all_special_tokens", ())
        probe = [*_PROBE, *(f"a{token} b" for token in special)]
        try:
            return all(
                list(self._call(probe, add_special)) == self._encode_in_rust(probe, add_special)
                for add_special in (True, False)
            )
        except Exception:  # noqa: BLE001 - a user's class may raise anything
            return False


class TransformersTokenizer:
    """A tokenizer of transformers, which adds special tokens by default.

    Args:
        tokenizer: The tokenizer.
    """

    adds_special = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = TransformersEncoder(tokenizer)

    def encode(self, texts: list[str], *, add_special: bool) -> Sequence[Any]:
        """Return the token ids of each text; with `add_special`, with the special tokens of the default."""
        return self._encoder.encode(texts, add_special=add_special)

    def encode_token(self, text: str) -> Sequence[Any]:
        """Return the token ids of one text; the text of a special token is that token."""
        return self._encoder.encode([text], add_special=False)[0]  # type: ignore[no-any-return]

    def decode(self, ids: list[int], *, skip_special: bool) -> Any:
        """Return the text of token ids; ids that the tokenizer does not have add nothing."""
        return decode_known(lambda some: self._tokenizer.decode(some, skip_special_tokens=skip_special), ids)

    def special_id(self, name: SpecialName) -> None:
        """Return None: transformers names special tokens by attributes."""


class RustTokenizer:
    """A ``tokenizers.Tokenizer``; stored truncation and padding are switched off while it encodes.

    Args:
        tokenizer: The tokenizer.
    """

    adds_special = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: list[str], *, add_special: bool) -> Sequence[Any]:  # noqa: ARG002 - it adds none
        """Return the token ids of each text, whole and without padding."""
        return encode_batch(self._tokenizer, texts, add_special=False)

    def encode_token(self, text: str) -> Sequence[Any]:
        """Return the token ids of one text; the text of a special token is that token."""
        return encode_batch(self._tokenizer, [text], add_special=False)[0]

    def decode(self, ids: list[int], *, skip_special: bool) -> Any:
        """Return the text of token ids; ids that the tokenizer does not have add nothing."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special)

    def special_id(self, name: SpecialName) -> Any:
        """Return the id of the first usual name of a special token that the vocabulary has."""
        return next((id for text in _NAMES[name] if (id := self._tokenizer.token_to_id(text)) is not None), None)


def encode_batch(tokenizer: Any, texts: list[str], *, add_special: bool) -> list[list[int]]:
    """Encode texts with a ``tokenizers.Tokenizer``, without its stored truncation and padding.

    Args:
        tokenizer: The tokenizer.
        texts: The texts.
        add_special: Whether its post-processor adds special tokens.
    """
    encode: Callable[..., Any] = getattr(tokenizer, "encode_batch_fast", None) or tokenizer.encode_batch
    with _whole_texts(tokenizer):
        return [encoding.ids for encoding in encode(texts, add_special_tokens=add_special)]


@contextmanager
def _whole_texts(tokenizer: Any) -> Iterator[None]:
    """Switch off truncation and padding; both are restored, since the user may encode other batches with them."""
    truncation, padding = getattr(tokenizer, "truncation", None), getattr(tokenizer, "padding", None)
    if truncation is not None:
        tokenizer.no_truncation()
    if padding is not None:
        tokenizer.no_padding()
    try:
        yield
    finally:
        if truncation is not None:
            tokenizer.enable_truncation(**truncation)
        if padding is not None:
            tokenizer.enable_padding(**padding)


def _encodes_in_rust(tokenizer: Any) -> bool:
    """Return whether a call of a transformers tokenizer only calls its Rust tokenizer, and makes masks."""
    own = getattr(tokenizer, "__dict__", {})
    for name, module in _METHODS.items():
        if name in own or getattr(getattr(type(tokenizer), name, None), "__module__", None) != module:
            return False
    # Translation models set the tokens of the language before each call.
    if hasattr(tokenizer, "_switch_to_input_mode"):
        return False
    return callable(getattr(getattr(tokenizer, "backend_tokenizer", None), "encode_batch", None))
