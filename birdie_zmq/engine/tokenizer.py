"""Any tokenizer, seen through one small face.

Three kinds come from ``load_tokenizer``: one of transformers, a ``tokenizers.Tokenizer``, and any object with
``encode`` (of a string or of a list of strings) and ``decode``. They are told apart by what they can do, so that
neither library need be installed.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from birdie_zmq.errors import BirdieError, TokenizerError
from birdie_zmq.types import ChatTemplates

_HF_INFINITY = 10**20
"""transformers writes int(1e30) where a tokenizer names no length."""

EMPTY: Mapping[str, Any] = MappingProxyType({})

_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "[BOS]")
_EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>")
_SPECIAL_ATTRIBUTES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class TokenizerAdapter:
    """A user's tokenizer behind one face.

    Args:
        tokenizer: What ``load_tokenizer`` returned.
        add_bos: Whether texts are encoded behind a BOS token: None leaves it to a transformers tokenizer's own
            habit, and is False for the others.
        prefix_token_id: What stands before a text that has no context; None for BOS, else EOS.

    Attributes:
        eos_token_ids: Every token at which generation ends: EOS, and what the tokenizer lists under the same name, as a
            model with a turn of its own to end does.

    Raises:
        TokenizerError: It has no ``encode`` or no ``decode``, or names no token to stand before a text.
    """

    def __init__(self, tokenizer: Any, add_bos: bool | None = None, prefix_token_id: int | None = None) -> None:
        for method in ("encode", "decode"):
            if not callable(getattr(tokenizer, method, None)):
                raise TokenizerError(
                    f"load_tokenizer returned a {type(tokenizer).__name__} without {method}(); it must have "
                    "encode(str) -> list[int] and decode(list[int]) -> str"
                )
        self._tokenizer = tokenizer
        # The next batch is encoded while answers of this one are decoded, and not every tokenizer bears that.
        self._lock = threading.Lock()
        self._add_bos = add_bos
        self._is_transformers = hasattr(tokenizer, "all_special_ids") and callable(tokenizer)
        self._is_tokenizers = not self._is_transformers and callable(getattr(tokenizer, "encode_batch", None))
        self._takes_lists: bool | None = None
        self._can_skip_special = self._is_transformers or self._is_tokenizers or _takes_skip_special(tokenizer.decode)
        self.bos_token_id = self._special_id("bos_token_id", _BOS_NAMES)
        self.eos_token_id = self._special_id("eos_token_id", _EOS_NAMES)
        self._prefix_token_id = prefix_token_id
        if prefix_token_id is None and self.bos_token_id is None and self.eos_token_id is None:
            raise TokenizerError(
                f"the {type(tokenizer).__name__} names neither bos_token_id nor eos_token_id; one of them is needed "
                "to score a text without context, so set the attribute in load_tokenizer, or say prefix_token_id=N in "
                "model_args"
            )
        further = getattr(tokenizer, "eos_token_ids", None) or ()
        self.eos_token_ids = frozenset(int(id) for id in (self.eos_token_id, *further) if id is not None)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        prefix = next(id for id in (self._prefix_token_id, self.bos_token_id, self.eos_token_id) if id is not None)
        assert prefix is not None  # the constructor has refused a tokenizer without any
        return prefix

    @property
    def fingerprint(self) -> str | None:
        """What the tokenizer says of the checkpoint that it lies in, if it says anything."""
        found = getattr(self._tokenizer, "fingerprint", None)
        return found if isinstance(found, str) else None

    @property
    def max_length(self) -> int | None:
        """The length that the tokenizer names for its model, if it names one."""
        length = getattr(self._tokenizer, "model_max_length", None)
        return int(length) if isinstance(length, int | float) and 0 < length < _HF_INFINITY else None

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of each text.

        Args:
            texts: Any number of texts.
            special: Whether BOS is added as `add_bos` says; False for a text that follows on another.

        Raises:
            TokenizerError: The tokenizer raised, or gave what are no token ids.
        """
        if not texts:
            return []
        try:
            with self._lock:
                encoded = self._encode(list(texts), special)
        except BirdieError:
            raise
        except Exception as error:
            raise TokenizerError(f"the tokenizer failed to encode a text: {_kind(error)}") from error
        bos = self.bos_token_id
        if special and self._add_bos and bos is not None:
            encoded = [[bos, *ids] for ids in encoded]
        if special and bos is not None and (self._add_bos or (self._is_transformers and self._add_bos is None)):
            # A text that begins with BOS itself, as chat templates write it, needs no second one.
            encoded = [ids[1:] if ids[:2] == [bos, bos] else ids for ids in encoded]
        return encoded

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; special tokens are left out where the tokenizer knows them and is asked to.

        Raises:
            TokenizerError: The tokenizer raised, or gave no string.
        """
        try:
            with self._lock:
                if self._can_skip_special:
                    text = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
                else:
                    text = self._tokenizer.decode(list(ids))
        except Exception as error:
            raise TokenizerError(f"the tokenizer failed to decode {len(ids)} tokens: {_kind(error)}") from error
        if not isinstance(text, str):
            raise TokenizerError(f"the tokenizer's decode gave a {type(text).__name__}, not a string")
        return text

    def chat_templates(self) -> ChatTemplates:
        """The templates and special tokens that a client needs to render conversations itself."""
        template = getattr(self._tokenizer, "chat_template", None)
        if isinstance(template, str):
            templates = {"default": template}
        elif isinstance(template, dict):
            templates = {str(name): text for name, text in template.items() if isinstance(text, str)}
        else:
            templates = {}
        special = {name: str(getattr(self._tokenizer, name, None) or "") for name in _SPECIAL_ATTRIBUTES}
        return ChatTemplates(
            templates=templates,
            special_tokens={name: text for name, text in special.items() if text},
            has_method=callable(getattr(self._tokenizer, "apply_chat_template", None)),
        )

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        add_generation_prompt: bool,
        template_args: Mapping[str, Any] = EMPTY,
    ) -> str:
        """Render one conversation by the tokenizer's own method, which is given further words for the template.

        Raises:
            TokenizerError: There is no such method, it raised, or it gave no string.
        """
        method = getattr(self._tokenizer, "apply_chat_template", None)
        if not callable(method):
            raise TokenizerError(
                f"the {type(self._tokenizer).__name__} has neither a chat_template nor an apply_chat_template method"
            )
        try:
            with self._lock:
                text = method(
                    conversation,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **template_args,
                )
        except Exception as error:
            raise TokenizerError(f"apply_chat_template failed: {_kind(error)}") from error
        if not isinstance(text, str):
            raise TokenizerError(f"apply_chat_template gave a {type(text).__name__}, not a string")
        return text

    # --- The three kinds ---------------------------------------------------------------------------------------------

    def _encode(self, texts: list[str], special: bool) -> list[list[int]]:
        if self._is_transformers:
            keywords = {} if special and self._add_bos is None else {"add_special_tokens": False}
            return _checked(self._tokenizer(texts, **keywords)["input_ids"], texts)
        if self._is_tokenizers:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            return _checked([encoding.ids for encoding in encodings], texts)
        if self._takes_lists is None:
            self._takes_lists = self._try_list()
        if self._takes_lists:
            return _checked(self._tokenizer.encode(texts), texts)
        return _checked([self._tokenizer.encode(text) for text in texts], texts)

    def _try_list(self) -> bool:
        """Whether a plain ``encode`` takes a list of strings: alone, or besides one string with the same result."""
        probe = ["a b", "c"]
        try:
            together = _checked(self._tokenizer.encode(list(probe)), probe)
        except Exception:  # noqa: BLE001 - a tokenizer that takes no list may say so in any way
            return False
        try:
            alone = _checked([self._tokenizer.encode(text) for text in probe], probe)
        except Exception:  # noqa: BLE001 - nor need one that takes lists take a string
            return True
        return together == alone

    def _special_id(self, attribute: str, names: Sequence[str]) -> int | None:
        value = getattr(self._tokenizer, attribute, None)
        if value is None and self._is_tokenizers:
            value = next((id for name in names if (id := self._tokenizer.token_to_id(name)) is not None), None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise TokenizerError(f"the tokenizer's {attribute} is {value!r}, which is no token id")
        return int(value)


def _kind(error: Exception) -> str:
    """An error without its own words, which may repeat a text; they are in its traceback, for the run that caused it."""
    return f"{type(error).__name__} (its own words are in the traceback)"


def _takes_skip_special(decode: Any) -> bool:
    """Whether a ``decode`` can be told to leave special tokens out."""
    try:
        return "skip_special_tokens" in inspect.signature(decode).parameters
    except (TypeError, ValueError):
        return False


def _checked(encoded: Any, texts: list[str]) -> list[list[int]]:
    """The ids as plain lists of ints, one list a text."""
    if len(encoded) != len(texts):
        raise TokenizerError(
            f"the tokenizer's encode must give a list of token ids for each text, but gave {len(encoded)} for {len(texts)}"
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
                "the tokenizer's encode must give a list of token ids from 0 to 2**31 - 1, but gave a "
                f"{type(ids).__name__} of something else"
            )
    return result
