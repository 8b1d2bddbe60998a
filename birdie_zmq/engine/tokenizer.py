"""One small interface to any tokenizer.

``load_tokenizer`` may return a tokenizer of transformers, a ``tokenizers.Tokenizer``, or any object with ``encode`` (of
a string or of a list of strings) and ``decode``. The adapter distinguishes them by their methods, so that neither
library needs to be installed.
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
"""A length of this or more means no limit: transformers uses int(1e30) for a tokenizer without a maximum length."""

NO_TEMPLATE_ARGS: Mapping[str, Any] = MappingProxyType({})

_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "[BOS]")
_EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>")
_SPECIAL_ATTRIBUTES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class TokenizerAdapter:
    """A user's tokenizer behind one interface; it may be called from several threads.

    Args:
        tokenizer: The tokenizer that ``load_tokenizer`` returned.
        add_bos: Whether a BOS token is added before texts. None keeps the default of a transformers tokenizer, and is
            False for the others.
        prefix_token_id: The token that precedes a text without context; None takes BOS, or EOS if there is no BOS.

    Attributes:
        bos_token_id: The BOS token; None if there is none.
        eos_token_id: The EOS token; None if there is none.
        eos_token_ids: All tokens that end generation: EOS, and the tokenizer's own ``eos_token_ids``, which chat models
            use to end a turn.

    Raises:
        TokenizerError: The tokenizer has no ``encode`` or no ``decode``, or no token to use as the prefix token.
    """

    def __init__(self, tokenizer: Any, add_bos: bool | None = None, prefix_token_id: int | None = None) -> None:
        for method in ("encode", "decode"):
            if not callable(getattr(tokenizer, method, None)):
                raise TokenizerError(
                    f"load_tokenizer returned a {type(tokenizer).__name__} without {method}(); it must have "
                    "encode(str) -> list[int] and decode(list[int]) -> str"
                )
        self._tokenizer = tokenizer
        # The next batch is encoded while answers of this one are decoded, and not every tokenizer is thread-safe.
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
                f"the {type(tokenizer).__name__} has neither bos_token_id nor eos_token_id; one of them is needed "
                "to score a text without context, so set the attribute in load_tokenizer, or set prefix_token_id=N in "
                "model_args"
            )
        more_eos = getattr(tokenizer, "eos_token_ids", None) or ()
        self.eos_token_ids = frozenset(int(id) for id in (self.eos_token_id, *more_eos) if id is not None)

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes a text without context."""
        prefix = next(id for id in (self._prefix_token_id, self.bos_token_id, self.eos_token_id) if id is not None)
        assert prefix is not None  # the constructor has rejected a tokenizer without any
        return prefix

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the checkpoint that the tokenizer was loaded from, if it has one."""
        found = getattr(self._tokenizer, "fingerprint", None)
        return found if isinstance(found, str) else None

    @property
    def max_length(self) -> int | None:
        """The maximum length of the model in tokens, if the tokenizer has one."""
        length = getattr(self._tokenizer, "model_max_length", None)
        return int(length) if isinstance(length, int | float) and 0 < length < _HF_INFINITY else None

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Encode each text into token ids.

        Args:
            texts: Any number of texts.
            special: Whether BOS may be added, by `add_bos`; False for a text that continues another.

        Raises:
            TokenizerError: The tokenizer raised, or returned something other than token ids.
        """
        if not texts:
            return []
        if special and self._is_transformers and self._add_bos is not False:
            return self._encode_with_special_tokens(texts)
        encoded = self._checked_encode(texts, special)
        bos = self.bos_token_id
        if special and self._add_bos and bos is not None:
            # A text that already begins with BOS, as chat templates write it, gets no second one.
            encoded = [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]
        return encoded

    def _encode_with_special_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts with the special tokens that a tokenizer of transformers adds, as lm_eval's hf backend does.

        A text that begins with the text of the prefix token, as chat templates write it, gets none of them.
        """
        prefix = self.decode([self.prefix_token_id], skip_special=False)
        begun = [text.startswith(prefix) for text in texts]
        plain = iter(
            self._checked_encode([text for text, is_begun in zip(texts, begun, strict=True) if is_begun], False)
        )
        added = iter(
            self._checked_encode([text for text, is_begun in zip(texts, begun, strict=True) if not is_begun], True)
        )
        bos = self.bos_token_id if self._add_bos else None
        encoded = [next(plain) if is_begun else next(added) for is_begun in begun]
        if bos is None:
            return encoded
        # A tokenizer of a user's own may add none although add_bos_token=True asks for it.
        return [
            ids if is_begun or ids[:1] == [bos] else [bos, *ids] for ids, is_begun in zip(encoded, begun, strict=True)
        ]

    def _checked_encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            with self._lock:
                return self._encode(list(texts), special)
        except BirdieError:
            raise
        except Exception as error:
            raise TokenizerError(f"the tokenizer failed to encode a text: {_describe_error(error)}") from error

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Decode token ids into text.

        Args:
            ids: The token ids.
            skip_special: Whether to leave out special tokens, if the tokenizer can do that.

        Raises:
            TokenizerError: The tokenizer raised, or did not return a string.
        """
        try:
            with self._lock:
                if self._can_skip_special:
                    text = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
                else:
                    text = self._tokenizer.decode(list(ids))
        except Exception as error:
            raise TokenizerError(
                f"the tokenizer failed to decode {len(ids)} tokens: {_describe_error(error)}"
            ) from error
        if not isinstance(text, str):
            raise TokenizerError(f"the tokenizer's decode returned a {type(text).__name__}, not a string")
        return text

    def chat_templates(self) -> ChatTemplates:
        """Return the chat templates and special tokens that a client needs to render conversations itself."""
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
        template_args: Mapping[str, Any] = NO_TEMPLATE_ARGS,
    ) -> str:
        """Render one conversation with the tokenizer's own ``apply_chat_template``.

        Args:
            conversation: The messages.
            add_generation_prompt: Whether the text ends with the start of the assistant's turn; if not, the last
                message is left open to be continued.
            template_args: Further keyword arguments for the template.

        Raises:
            TokenizerError: There is no such method, it raised, or it did not return a string.
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
            raise TokenizerError(f"apply_chat_template failed: {_describe_error(error)}") from error
        if not isinstance(text, str):
            raise TokenizerError(f"apply_chat_template returned a {type(text).__name__}, not a string")
        return text

    # --- The three kinds of tokenizer ---------------------------------------------------------------------------------

    def _encode(self, texts: list[str], special: bool) -> list[list[int]]:
        if self._is_transformers:
            keywords = {} if special and self._add_bos is not False else {"add_special_tokens": False}
            return _checked(self._tokenizer(texts, **keywords)["input_ids"], texts)
        if self._is_tokenizers:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            return _checked([encoding.ids for encoding in encodings], texts)
        if self._takes_lists is None:
            self._takes_lists = self._probe_lists()
        if self._takes_lists:
            return _checked(self._tokenizer.encode(texts), texts)
        return _checked([self._tokenizer.encode(text) for text in texts], texts)

    def _probe_lists(self) -> bool:
        """Return whether ``encode`` takes a list of strings and, if it also takes single strings, encodes both alike."""
        probe = ["a b", "c"]
        try:
            together = _checked(self._tokenizer.encode(list(probe)), probe)
        except Exception:  # noqa: BLE001 - a tokenizer may reject a list with any error
            return False
        try:
            alone = _checked([self._tokenizer.encode(text) for text in probe], probe)
        except Exception:  # noqa: BLE001 - one that takes lists may reject a string
            return True
        return together == alone

    def _special_id(self, attribute: str, names: Sequence[str]) -> int | None:
        value = getattr(self._tokenizer, attribute, None)
        if value is None and self._is_tokenizers:
            value = next((id for name in names if (id := self._tokenizer.token_to_id(name)) is not None), None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise TokenizerError(f"the tokenizer's {attribute} is {value!r}, which is not a token id")
        return int(value)


def _describe_error(error: Exception) -> str:
    """Describe an error without its message, which may repeat a text; the run that caused it gets it in the traceback."""
    return f"{type(error).__name__} (its message is in the traceback)"


def _takes_skip_special(decode: Any) -> bool:
    """Return whether a ``decode`` has the parameter ``skip_special_tokens``."""
    try:
        return "skip_special_tokens" in inspect.signature(decode).parameters
    except (TypeError, ValueError):
        return False


def _checked(encoded: Any, texts: list[str]) -> list[list[int]]:
    """Return the ids as one plain list of ints per text.

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
