"""The interface to one kind of tokenizer, and functions that the kinds share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from birdie_zmq.errors import TokenizerError

SpecialName = Literal["bos_token_id", "eos_token_id"]
"""The special tokens that the engine uses, as transformers names them."""


class TokenizerKind(Protocol):
    """What differs between the kinds of tokenizer; `birdie_zmq.engine.tokenizer` has all that they share."""

    adds_special: bool
    """Whether the tokenizer itself adds special tokens, such as BOS, to a text."""

    def encode(self, texts: list[str], *, add_special: bool) -> Sequence[Any]:
        """Return the token ids of each text, unchecked; with `add_special`, the tokenizer may add special tokens."""
        ...

    def encode_token(self, text: str) -> Sequence[Any]:
        """Return the token ids of a text that may spell one special token, which is then its only id."""
        ...

    def decode(self, ids: list[int], *, skip_special: bool) -> Any:
        """Return the text of token ids; ids that the tokenizer does not have add nothing."""
        ...

    def special_id(self, name: SpecialName) -> Any:
        """Return the id of a special token that has no attribute of this name, or None; the id is unchecked."""
        ...


def accepted_keywords(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that a function's signature names; none if it has no signature."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in keywords.items() if name in parameters}


def checked_ids(encoded: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts as one plain list of ints per text.

    Raises:
        TokenizerError: The ids are not one list of ints from 0 to 2**31 - 1 for each text.
    """
    if len(encoded) != len(texts):
        raise TokenizerError(
            f"the tokenizer's encode must return a list of token ids for each text, but returned {len(encoded)} for {len(texts)}"
        )
    result: list[list[int]] = []
    for ids in encoded:
        try:
            array = np.asarray(ids)
        except ValueError:  # lists of uneven length
            array = np.zeros((1, 1))
        if array.size == 0 and array.ndim == 1:
            result.append([])
        elif array.ndim == 1 and np.issubdtype(array.dtype, np.integer) and 0 <= array.min() <= array.max() < 2**31:
            result.append(array.tolist())
        else:
            raise TokenizerError(
                "the tokenizer's encode must return a list of token ids from 0 to 2**31 - 1, but returned a "
                f"{type(ids).__name__} of something else"
            )
    return result


def decode_known(
    decode: Callable[[list[int]], Any], ids: list[int], own_ids: Callable[[], list[int]] | None = None
) -> Any:
    """Decode token ids without those that the tokenizer does not have.

    The vocabulary of a model is often padded beyond its tokenizer, so the model may generate such ids. The libraries of
    Hugging Face decode them to no text. Others raise an error, mostly a KeyError or an IndexError, or a ValueError where
    ids are bytes. An id that raises one of these errors alone is left out.

    Args:
        decode: Decodes ids.
        ids: The token ids.
        own_ids: Returns ids that the tokenizer has. A decoder that fails on these too has a fault, and would otherwise
            seem to have none of the ids.

    Raises:
        Exception: What `decode` raised, if it decodes each id alone, or fails on the tokenizer's own ids.
    """
    try:
        return decode(ids)
    except Exception as error:
        if not _means_unknown(error):
            raise
        if own_ids is not None:
            decode(own_ids())
        unknown = {id for id in set(ids) if _is_unknown(decode, id)}
        if not unknown:
            raise
        return decode([id for id in ids if id not in unknown])


def _is_unknown(decode: Callable[[list[int]], Any], id: int) -> bool:
    try:
        decode([id])
    except Exception as error:
        if not _means_unknown(error):
            raise
        return True
    return False


def _means_unknown(error: Exception) -> bool:
    """Return whether a decoder raises such an error for an id that it does not have; bytes of no text are no such id."""
    return isinstance(error, LookupError | OverflowError | ValueError) and not isinstance(error, UnicodeError)
